// A product: y = epilogue(norm(x) . w^T).
//
// Threads share the strips of w, so that each weight is read by one of them only. For one token, or
// a few, the way is: prepare the inputs, multiply strips straight from their panels (GEMV), write
// the sums. Prompts take blocks of tokens and unpack their weights first (gemm.cpp).
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "ops/epilogue.h"
#include "ops/gemm.h"
#include "ops/inputs.h"
#include "simd/isa.h"
#include "sys/schedule.h"
#include "types/packed.h"

namespace starcoder {

namespace {

// Fewer tokens than this every thread prepares for itself: it takes a microsecond or four, about as
// long as to share the work and to wait for each other.
constexpr int64_t kAlone = 4;

constexpr int64_t kSums = kStripsAtOnce * kTokenBlock * kStripRows;  // of a thread, 135 KB

// ---- one token, or a few ----

// acc (count, n, 32) += strips first .. first + count times all tokens.
void gemv(const PackedMatrix& w, int64_t first, int64_t count, const QuantizedActivations& x,
          float* acc) {
    const int64_t n = x.n_rows, at_once = isa().gemv_tokens;
    for (int64_t s = 0; s < count; ++s)
        for (int64_t t = 0; t < n; t += at_once)
            isa().gemv(w.type, w.group(first + s, 0), w.n_groups, x.at(0, t), n,
                       std::min(at_once, n - t), acc + (s * n + t) * kStripRows);
}

template <class Group>
void gemv(const PackedMatrix& w, int64_t first, int64_t count, const GroupMajor<Group>& x,
          float* acc) {
    gemm(w, first, count, x, 0, x.n_rows, acc);
}

// Strips whose sums are written together. While they are written no weights are read, and the
// processor no longer runs ahead of what it waits for: so it is done once. Q4_0, beside a thread
// that only reads: 0.97 with four strips at once, 1.01 with 32, 1.04 with all.
int64_t strips_at_once(int64_t n) { return kSums / (n * kGroup) * kStripsAtOnce; }

// A piece is some strips. Sums of pieces that follow each other are written together.
template <class X>
void multiply_few(Pieces& pieces, const PackedMatrix& w, const X& x, const Epilogue& epilogue) {
    alignas(64) float acc[kSums];
    const int64_t room = strips_at_once(x.n_rows), sums = x.n_rows * kStripRows;
    int64_t first = 0, last = 0;  // strips whose sums are there
    for (const auto [begin, end] : pieces) {
        if (begin != last || end - first > room) {
            epilogue.write(first, last - first, 0, x.n_rows, acc);
            first = begin;
        }
        float* here = acc + (begin - first) * sums;
        std::memset(here, 0, static_cast<size_t>((end - begin) * sums) * sizeof(float));
        gemv(w, begin, end - begin, x, here);
        last = end;
    }
    epilogue.write(first, last - first, 0, x.n_rows, acc);
}

// ---- many tokens ----

// A piece is `strips` strips for a block of tokens.
template <class X>
void multiply_many(Pieces& pieces, const PackedMatrix& w, const X& x, int64_t strips,
                   const Epilogue& epilogue) {
    alignas(64) float acc[kSums];
    const int64_t blocks = divide_up(w.n_strips, strips);
    for (const auto [unit, end] : pieces) {
        const int64_t t = unit / blocks * kTokenBlock, first = unit % blocks * strips;
        const int64_t n = std::min(kTokenBlock, x.n_rows - t);
        const int64_t count = std::min(strips, w.n_strips - first);
        std::memset(acc, 0, static_cast<size_t>(count * n * kStripRows) * sizeof(float));
        gemm(w, first, count, x, t, n, acc);
        epilogue.write(first, count, t, n, acc);
    }
}

// ---- both ----

template <class Group>
void multiply(Pieces& pieces, const PackedMatrix& w, const GroupMajor<Group>& x, int64_t strips,
              const Epilogue& epilogue) {
    if (is_gemv(x.n_rows))
        multiply_few(pieces, w, x, epilogue);
    else
        multiply_many(pieces, w, x, strips, epilogue);
}

void multiply(Pieces& pieces, const PackedMatrix& w, const ProductInputs& x, int64_t strips,
              const Epilogue& epilogue) {
    if (x.quantized)
        multiply(pieces, w, GroupMajor<const ActivationGroup>{x.quantized, x.n}, strips, epilogue);
    else if (x.bf16)
        multiply(pieces, w, GroupMajor<const Bf16Group>{x.bf16, x.n}, strips, epilogue);
    else
        multiply(pieces, w, GroupMajor<const FloatGroup>{x.floats, x.n}, strips, epilogue);
}

// Strips in a piece: eight pieces for each thread, so that all are done at once; but no more than
// are written at once, and no fewer where the next product takes them quantized.
int64_t strips_a_piece(int64_t strips, int64_t n, bool quantizes, int n_threads) {
    if (quantizes) return kStripsAtOnce;
    const int64_t blocks = is_gemv(n) ? 1 : divide_up(n, kTokenBlock);
    return std::clamp<int64_t>(strips * blocks / (8 * n_threads), 1, kStripsAtOnce);
}

}  // namespace

size_t quantized_bytes(const Matrix& w, int64_t n) {
    if (is_float(w.type())) return 0;
    return static_cast<size_t>(n * w.packed().n_groups) * sizeof(ActivationGroup);
}

size_t linear_scratch(const Matrix& w, int64_t n) {
    Cutter measure(nullptr);
    InputMemory(measure, w.packed(), n);
    return measure.used();
}

void linear(Schedule& schedule, const Matrix& matrix, const Input& x, int64_t n, const float* bias,
            Activation activation, const float* residual, const Output& y, uint8_t* shared) {
    if (n == 0) return;
    const PackedMatrix& w = matrix.packed();
    const Epilogue epilogue(w, bias, activation, residual, y, n);
    const int64_t strips =
        strips_a_piece(w.n_strips, n, epilogue.quantizes(), schedule.n_threads());
    const bool few = is_gemv(n);
    const int64_t n_units =
        few ? w.n_strips : divide_up(w.n_strips, strips) * divide_up(n, kTokenBlock);
    const int64_t grain = few ? strips : 1;
    // More tokens wait for multipliers, not for memory.
    constexpr int64_t kWaitForMemory = 4;
    const uint8_t* weights = n <= kWaitForMemory ? w.group(0, 0) : nullptr;
    const int64_t stride = strips * w.strip_bytes();
    if (!x.quantized && n < kAlone)
        return schedule.add(
            n_units, grain,
            [=, &w](Pieces& pieces) {
                multiply(pieces, w, prepare_alone(w, x, n), strips, epilogue);
            },
            weights, stride);
    ProductInputs inputs{x.quantized, nullptr, nullptr, n};
    if (!x.quantized) {
        Cutter cutter(shared);
        const InputMemory memory(cutter, w, n);
        schedule.add(n, [=, &w](Pieces& pieces) {
            for (const auto rows : pieces) prepare_rows(w, x, rows, memory);
        });
        inputs = memory;
    }
    schedule.add(
        n_units, grain, [=, &w](Pieces& pieces) { multiply(pieces, w, inputs, strips, epilogue); },
        weights, stride);
}

}  // namespace starcoder
