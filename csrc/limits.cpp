// How fast this machine multiplies and reads at best: what speeds are compared with.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "chunk.h"
#include "clock.h"
#include "isa.h"
#include "kernels.h"
#include "threads.h"

namespace starcoder {

namespace {

constexpr int64_t kRounds = 1 << 18;  // about a millisecond; all sums of floats stay exact
constexpr int kLine = 64;

// Weights of 3, activations of 5, in every arithmetic.
struct Operands {
    alignas(64) uint8_t codes[kPeakBytes];
    alignas(64) int8_t bytes[kPeakBytes];
    alignas(64) uint16_t w16[kPeakBytes / 2], x16[kPeakBytes / 2];
    alignas(64) float w32[kPeakBytes / 4], x32[kPeakBytes / 4];

    Operands() {
        std::memset(codes, 3, sizeof(codes));
        std::memset(bytes, 5, sizeof(bytes));
        for (uint16_t& w : w16) w = 0x4040;
        for (uint16_t& x : x16) x = 0x40a0;
        for (float& w : w32) w = 3;
        for (float& x : x32) x = 5;
    }
};

Products multiply(const Isa& table, Arithmetic kind, const Operands& o) {
    switch (kind) {
        case Arithmetic::Int8: return table.int8_peak(o.codes, o.bytes, kRounds);
        case Arithmetic::BF16: return table.bf16_peak(o.w16, o.x16, kRounds);
        case Arithmetic::F32: break;
    }
    return table.f32_peak(o.w32, o.x32, kRounds);
}

}  // namespace

Peak peak(Arithmetic kind, double seconds) {
    const Isa& table = isa();
    if (kind == Arithmetic::BF16 && !table.bf16_peak) return {0, 15};
    const Operands operands;
    std::vector<Products> done(static_cast<size_t>(n_threads()));
    double elapsed = 0;
    together(n_threads(), [&](Team& team) {
        Products mine{0, 0};
        multiply(table, kind, operands);  // the clock of a core may have to rise
        team.barrier();
        const auto start = Clock::now();
        do {
            const Products some = multiply(table, kind, operands);
            mine.count += some.count, mine.sum += some.sum;
        } while (seconds_since(start) < seconds);
        done[static_cast<size_t>(team.index())] = mine;
        team.barrier();
        if (team.index() == 0) elapsed = seconds_since(start);
    });
    Products all{0, 0};
    for (const Products& one : done) all.count += one.count, all.sum += one.sum;
    return {static_cast<double>(all.count) / elapsed, all.sum / static_cast<double>(all.count)};
}

Memory::Memory(int64_t nbytes, uint64_t bits) : n_lines_(nbytes / kLine) {
    const auto chunk = std::make_shared<Chunk>(static_cast<size_t>(nbytes));
    data_ = {chunk, chunk->take(static_cast<size_t>(nbytes))};
    uint64_t line[kLine / 8];
    std::fill(std::begin(line), std::end(line), bits);
    together(n_threads(), [&](Team& team) {
        const auto mine = team.share(n_lines_);
        for (int64_t i = mine.begin; i < mine.end; ++i)
            std::memcpy(data_.get() + i * kLine, line, kLine);
    });
}

Reading Memory::read(int passes) const {
    std::vector<uint64_t> seen(static_cast<size_t>(n_threads()));
    double seconds = 0;
    together(n_threads(), [&](Team& team) {
        const auto mine = team.share(n_lines_);
        alignas(kLine) uint64_t line[kLine / 8] = {};
        team.barrier();
        const auto start = Clock::now();
        for (int pass = 0; pass < passes; ++pass)
            isa().read_lines(data_.get() + mine.begin * kLine, mine.end - mine.begin,
                             reinterpret_cast<uint8_t*>(line));
        team.barrier();
        if (team.index() == 0) seconds = seconds_since(start);
        for (uint64_t word : line) seen[static_cast<size_t>(team.index())] |= word;
    });
    uint64_t all = 0;
    for (uint64_t one : seen) all |= one;
    return {static_cast<double>(passes * n_lines_ * kLine) / seconds, all};
}

}  // namespace starcoder
