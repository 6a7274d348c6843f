// The table of inner loops, one per instruction set. Operations call them through `isa()`.
//
// Every table gives the same bits: lanes are rows, keys or dimensions, each lane does the same
// operations in the same order, and sums across lanes go through sixteen partial sums.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "simd/activations.h"
#include "simd/prefetch.h"
#include "types/activation.h"
#include "types/floats.h"
#include "types/panels.h"

namespace starcoder {

// Multiply-adds that were done, and the sum of their products.
struct Products {
    int64_t count;
    double sum;
};

struct Isa {
    const char* name;

    // Codes of 8 bits are multiplied as signed numbers: they need no zero point.
    bool signed_bytes;

    // Up to this many tokens `gemv` and `gemv_floats` multiply at a time.
    int gemv_tokens;

    // ---- products ----

    // x (k) -> groups of out, `stride` from one to the next, for weights with these traits.
    void (*quantize_activations)(const float* x, int64_t k, WeightTraits weights,
                                 ActivationGroup* out, int64_t stride);

    // acc (n, 32) += a strip, its groups at `groups`, times n rows of x, whose groups lie `stride`
    // apart, for n <= gemv_tokens: straight from the panels.
    void (*gemv)(Type type, const uint8_t* groups, int64_t n_groups, const ActivationGroup* x,
                 int64_t stride, int64_t n, float* acc);

    // One group of panel `which`, 0 or 1, of a strip -> its half of a tile.
    void (*unpack)(Type type, const uint8_t* group, int which, UnpackedTile& tile);
    // acc (n, 32) += the rows of the tiles, one a group, times n rows of x, whose groups lie
    // `stride` apart.
    void (*gemm)(Type type, const UnpackedTile* tiles, int64_t n_tiles, const ActivationGroup* x,
                 int64_t stride, int64_t n, float* acc);

    // The same three with float weights, a group of k <= 128 inputs at a time. Unpacked, it is (k,
    // 32) floats; of BF16 k is even, and of each pair the second input stands first: see
    // `gemm_bf16`.
    void (*gemv_floats)(Type type, const uint8_t* group, int64_t k, const FloatGroup* x, int64_t n,
                        float* acc);
    void (*unpack_floats)(Type type, const uint8_t* group, int64_t k, float* tile);
    void (*gemm_floats)(const float* tile, int64_t k, const FloatGroup* x, int64_t n, float* acc);

    // to (k) = x (k), rounded to nearest even; what is smaller than 2^-126 becomes 0, or -0.
    void (*round_bf16)(const float* x, int64_t k, uint16_t* to);
    // acc (n, 32) += `n_pairs` pairs of inputs of a group times the first of n rows of x, all bf16.
    // Null where the machine has no such product, or a slow one; then `gemm_floats` gives the same
    // bits, if of each pair the second input stands first.
    void (*gemm_bf16)(const uint8_t* group, int64_t n_pairs, const Bf16Group* x, int64_t n,
                      float* acc);

    // y (n, valid) = activation(acc (n, 32) * units + bias) + residual; rows of y, residual:
    // `stride`. Units, bias and residual may be null.
    void (*epilogue)(const float* acc, int64_t n, int valid, const float* units, const float* bias,
                     Activation activation, const float* residual, float* y, int64_t stride);

    // ---- rows ----

    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t k,
                       float* y);
    void (*rms_norm)(const float* x, const float* weight, float eps, int64_t k, float* y);
    // y (n) = activation(gate (n)) * up (n)
    void (*gated)(const float* gate, const float* up, int64_t n, Activation activation, float* y);

    // ---- attention ----

    // to (k) = from (k), rounded to nearest even.
    void (*narrow)(const float* from, int64_t k, half* to);
    // scores (h, stride), 16 columns a block = queries (h, d) times blocks of keys (d, 16).
    void (*scores)(const float* queries, int64_t h, int64_t d, const float* keys, int64_t n_blocks,
                   float* scores, int64_t stride);
    // x (n) = exp(x - max(x)) in place; n a multiple of 16, only the first `valid` count, the rest
    // become 0. Returns the maximum and the sum.
    void (*softmax)(float* x, int64_t n, int64_t valid, float* max, float* sum);
    // acc (h, d) += weights (h, stride), `valid` columns, times values (valid, d).
    void (*weighted_values)(const float* weights, int64_t stride, int64_t valid, int64_t h,
                            int64_t d, const float* values, float* acc);
    // The same three with bf16. Queries and weights are first rounded to pairs: x (n) in place.
    void (*round_pairs)(float* x, int64_t n);
    // scores (h, 16 n_blocks) = queries (h, d) in pairs times n_blocks <= 2 blocks of keys
    // (d / 2, 16, 2); `room` is for 32 d floats. `prefetcher` runs meanwhile; or null.
    void (*scores_bf16)(const float* queries, int64_t h, int64_t d, const uint16_t* const* keys,
                        int64_t n_blocks, Prefetcher* prefetcher, float* room, float* scores,
                        int64_t stride);
    // acc (h, d) += columns key .. key + valid of weights (h, stride) in pairs, times blocks of
    // values (16 / 2, d, 2); `room` is for 16 d floats a block.
    void (*weighted_values_bf16)(const float* weights, int64_t stride, int64_t key, int64_t valid,
                                 int64_t h, int64_t d, const uint16_t* const* values,
                                 Prefetcher* prefetcher, float* room, float* acc);
    // Merges two parts of n softmaxes: acc (n, d), max (n), sum (n) of one into those of the other.
    void (*merge)(float* acc, float* max, float* sum, const float* acc2, const float* max2,
                  const float* sum2, int64_t n, int64_t d);

    // ---- types ----

    // x (n) -> blocks of this type, n in whole blocks; see `requantize`.
    void (*encode)(Type type, const float* x, int64_t n, bool fused, void* out);
    // out (n) = x (n)
    void (*widen_half)(const half* x, int64_t n, float* out);

    // ---- probes (probe/peaks.h) ----

    // As many independent sums as hide the latency of products, of `rounds` products each. Operands
    // are kPeakBytes long. Codes are of 4 bits.
    Products (*int8_peak)(const uint8_t* codes, const int8_t* x, int64_t rounds);
    Products (*bf16_peak)(const uint16_t* w, const uint16_t* x, int64_t rounds);  // or null
    Products (*f32_peak)(const float* w, const float* x, int64_t rounds);
    // line (64 bytes) |= each line at `data`.
    void (*read_lines)(const uint8_t* data, int64_t n_lines, uint8_t* line);
};

inline constexpr int kPeakBytes = 1024;  // four rounds' of the widest tile

const Isa& isa();                              // the one in use
std::span<const Isa* const> available_isas();  // best first; the last is scalar
bool use_isa(std::string_view name);           // false: no such table on this machine

}  // namespace starcoder
