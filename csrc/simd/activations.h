// Activations as products take them: quantized to 8 bits, or floats, in groups of 128 inputs.
#pragma once

#include <cstdint>

#include "types/panels.h"

namespace starcoder {

// A group of one token's activations, quantized, with what its products need: one stretch of
// memory, and one stream for the tokens of a tile.
struct alignas(64) ActivationGroup {
    int8_t q[kGroup];  // zeros after the last input; for int16 scales, two sub-blocks interleaved
    union {            // of each sub-block,
        int32_t start[8];  // what its dot product starts from: -zero * sum(q);
        float sum[8];      // for weights with minima: sum(q)
    };
    int32_t pair_sum[4];  // for int16 scales: both sum(q) of each two sub-blocks, as int16
    float scale;
};

// Unquantized, for float weights. Of BF16 each two inputs are swapped where there is no instruction
// for pairs (simd/isa.h: `gemm_bf16`).
struct FloatGroup {
    float x[kGroup];
};
struct Bf16Group {
    uint16_t x[kGroup];
};

// Groups of n_rows tokens, stored group-major, (n_groups, n_rows). Row-major would put a tile's
// tokens a power of two apart, and all of them in one cache set.
template <class Group>
struct GroupMajor {
    Group* groups;
    int64_t n_rows;
    Group* at(int64_t g, int64_t row) const { return groups + g * n_rows + row; }
};
using QuantizedActivations = GroupMajor<const ActivationGroup>;

// What quantizing activations needs to know of the type of the weights.
struct WeightTraits {
    int zero, subs;  // the code that stands for 0; sub-blocks in a group
    bool min;        // with minima
    bool int16;      // with int16 scales
};

// Two numbers of 16 bits in one of 32.
inline int32_t int16_pair(int32_t high, int32_t low) {
    return static_cast<int32_t>(static_cast<uint32_t>(high) << 16 |
                                (static_cast<uint32_t>(low) & 0xffff));
}

}  // namespace starcoder
