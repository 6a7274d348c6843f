#include "probe/peaks.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "simd/isa.h"
#include "sys/arena.h"
#include "sys/clock.h"
#include "sys/schedule.h"

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

// What a thread found, and when.
template <class T>
struct alignas(64) Timed {
    T result{};
    Clock::time_point begin, end;
};

// From the first thread's begin to the last one's end.
template <class T>
double seconds_of(const std::vector<Timed<T>>& threads) {
    auto begin = threads[0].begin, end = threads[0].end;
    for (const auto& one : threads)
        begin = std::min(begin, one.begin), end = std::max(end, one.end);
    return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

Peak peak(Arithmetic kind, double seconds) {
    const Isa& table = isa();
    if (kind == Arithmetic::BF16 && !table.bf16_peak) return {0, 15};
    const Operands operands;
    Call call(Call::Sharing::EachItsOwn);
    const int threads = call.n_threads();
    std::vector<Timed<Products>> done(static_cast<size_t>(threads));
    call.schedule().add(threads, 1, [&](Pieces&) {  // the clock of a core may have to rise
        multiply(table, kind, operands);
    });
    call.schedule().add(threads, 1, [&](Pieces& pieces) {
        auto& [mine, begin, end] = done[static_cast<size_t>(pieces.thread())];
        begin = Clock::now();
        do {
            const Products some = multiply(table, kind, operands);
            mine.count += some.count, mine.sum += some.sum;
        } while (seconds_since(begin) < seconds);
        end = Clock::now();
    });
    call.run();
    Products all{0, 0};
    for (const auto& one : done) all.count += one.result.count, all.sum += one.result.sum;
    return {static_cast<double>(all.count) / seconds_of(done),
            all.sum / static_cast<double>(all.count)};
}

Memory::Memory(int64_t nbytes, uint64_t bits) : n_lines_(nbytes / kLine) {
    const auto arena = std::make_shared<Arena>(static_cast<size_t>(nbytes));
    data_ = {arena, arena->take(static_cast<size_t>(nbytes))};
    uint64_t line[kLine / 8];
    std::fill(std::begin(line), std::end(line), bits);
    parallel_pieces(n_lines_, 1 << 14, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) std::memcpy(data_.get() + i * kLine, line, kLine);
    });
}

Reading Memory::read(int passes) const {
    Call call(Call::Sharing::EachItsOwn);
    const int threads = call.n_threads();
    std::vector<Timed<uint64_t>> seen(static_cast<size_t>(threads));
    call.schedule().add(threads, 1, [&](Pieces& pieces) {
        auto& [bits, begin, end] = seen[static_cast<size_t>(pieces.thread())];
        const int64_t first = n_lines_ * pieces.thread() / threads;
        const int64_t last = n_lines_ * (pieces.thread() + 1) / threads;
        alignas(kLine) uint64_t line[kLine / 8] = {};
        begin = Clock::now();
        for (int pass = 0; pass < passes; ++pass)
            isa().read_lines(data_.get() + first * kLine, last - first,
                             reinterpret_cast<uint8_t*>(line));
        end = Clock::now();
        for (uint64_t word : line) bits |= word;
    });
    call.run();
    uint64_t all = 0;
    for (const auto& one : seen) all |= one.result;
    return {static_cast<double>(passes * n_lines_ * kLine) / seconds_of(seen), all};
}

}  // namespace starcoder
