// Rows of weights -> rows of blocks, a piece at a time: the floats in between stay in the cache.
#include "types/encode.h"

#include <atomic>

#include "simd/isa.h"
#include "sys/schedule.h"
#include "types/decode.h"

namespace starcoder {

namespace {

// Whole blocks of every type, and whole tiles of simd/encode_tile.h: 16 KiB of floats.
constexpr int64_t kPiece = 4096;
constexpr int64_t kGrain = 16;  // pieces a thread takes at once

// The byte at which a weight's block begins.
int64_t offset(Type type, int64_t weight) { return weight / block_len(type) * block_bytes(type); }

// n weights as floats: those at `data` themselves, or `buffer` filled with them. In a file they may
// begin at any byte.
const float* widened(Type type, const uint8_t* data, int64_t n, float* buffer) {
    const auto address = reinterpret_cast<uintptr_t>(data);
    if (type == Type::F32 && address % 4 == 0) return reinterpret_cast<const float*>(data);
    if (type == Type::F16 && address % 2 == 0)
        isa().widen_half(reinterpret_cast<const half*>(data), n, buffer);
    else
        dequantize(type, data, 1, n, buffer);
    return buffer;
}

bool all_finite(const float* x, int64_t n) {
    int32_t top = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t bits = __builtin_bit_cast(int32_t, x[i]) & 0x7fffffff;
        top = bits > top ? bits : top;
    }
    return top < 0x7f800000;
}

// Calls f(first, count, floats) for every piece of n weights, on all threads.
template <class F>
void for_pieces(Type type, const void* data, int64_t n, F&& f) {
    const auto* bytes = static_cast<const uint8_t*>(data);
    parallel_pieces((n + kPiece - 1) / kPiece, kGrain, [&](int64_t begin, int64_t end) {
        alignas(64) float buffer[kPiece];
        for (int64_t first = begin * kPiece; first < end * kPiece && first < n; first += kPiece) {
            const int64_t count = n - first < kPiece ? n - first : kPiece;
            f(first, count, widened(type, bytes + offset(type, first), count, buffer));
        }
    });
}

}  // namespace

void requantize(Type from, const void* data, Type to, int64_t n_rows, int64_t n_cols, bool fused,
                void* out) {
    for_pieces(from, data, n_rows * n_cols, [&](int64_t first, int64_t count, const float* x) {
        isa().encode(to, x, count, fused, static_cast<uint8_t*>(out) + offset(to, first));
    });
}

int64_t first_non_finite(Type type, const void* data, int64_t n) {
    std::atomic<int64_t> found{n};
    for_pieces(type, data, n, [&](int64_t first, int64_t count, const float* x) {
        if (first >= found.load(std::memory_order_relaxed) || all_finite(x, count)) return;
        int64_t i = 0;
        while (all_finite(x + i, 1)) ++i;
        for (int64_t old = found; first + i < old && !found.compare_exchange_weak(old, first + i););
    });
    return found == n ? -1 : found.load();
}

}  // namespace starcoder
