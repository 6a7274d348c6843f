// Sixteen groups of weights side by side, one a lane, for the search of their scales and codes:
// sums need no order but that of the weights, and every instruction set finds the same. Part of
// loops.h.
#pragma once

namespace starcoder {
namespace {

constexpr half kNotANumber = 0x7e00;
constexpr int32_t kInfinity = 0x7f800000;  // as bits
constexpr int kLanes = 16;

int32_t magnitude(float x) { return __builtin_bit_cast(int32_t, x) & 0x7fffffff; }

// The largest magnitude, as bits; above kInfinity where there is a NaN.
int32_t top_of(const float* x, int n) {
    int32_t top = 0;
    for (int i = 0; i < n; ++i) top = magnitude(x[i]) > top ? magnitude(x[i]) : top;
    return top;
}

// ---- tiles: sixteen groups side by side ----

// Weights (Len, 16) of one or more blocks, each block times a power of two that brings its largest
// weight to 1 .. 2 (or 4, from 2^127 on): nothing overflows on the way.
template <int Len>
struct Tile {
    alignas(64) float x[Len][kLanes];
    float unit[kLanes];   // what 1 stands for in the lane's block
    bool finite[kLanes];  // of the lane's block
};

template <int Len>
void fill(const float* x, int n_blocks, int lanes, Tile<Len>& tile) {
    for (int lane = 0; lane < kLanes; lane += lanes) {
        const bool present = lane < n_blocks * lanes;
        const float* block = x + lane * Len;
        const int32_t top = present ? top_of(block, lanes * Len) : 0;
        // A block without a normal number (bits below 2^-126) becomes zero.
        const bool some = top >= 1 << 23 && top < kInfinity;
        const int exponent = some ? 254 - (top >> 23) : 127;
        const int32_t up = exponent < 1 ? 1 : exponent;
        const float factor = some ? __builtin_bit_cast(float, up << 23) : 0.0f;
        for (int j = lane; j < lane + lanes; ++j) {
            tile.unit[j] = __builtin_bit_cast(float, (254 - up) << 23);
            tile.finite[j] = top < kInfinity;
            if (some)
                for (int i = 0; i < Len; ++i) tile.x[i][j] = x[j * Len + i] * factor;
            else
                for (int i = 0; i < Len; ++i) tile.x[i][j] = 0.0f;
        }
    }
}

// A scale as f16 can hold it: the nearest finite one, never -0, and never 0 where `whole` numbers
// will multiply it and the smallest is of use.
half scale_bits(float d, bool whole) {
    constexpr float kMost = 65504.0f;
    const half bits = float_to_half(d > kMost ? kMost : d < -kMost ? -kMost : d);
    if (bits & 0x7fff) return bits;
    return whole && d != 0 ? bits | 1 : 0;
}

F clamp(F x, F low, F high) { return min(max(x, low), high); }

F nearest(F x, F low, F high) { return to_float(round(clamp(x, low, high))); }

constexpr float kTiny = 1e-20f;  // of weights around 1

F positive_inverse(F x) {  // 0 where x is not above kTiny
    return select_less(set(kTiny), x, div(set(1.0f), max(x, set(kTiny))), set(0.0f));
}

F signed_inverse(F x) {
    const F sign = select_less(x, set(0.0f), set(-1.0f), set(1.0f));
    return mul(sign, positive_inverse(abs(x)));
}

// ---- what a search finds ----

// Scales and minima of a tile as blocks hold them, and what they stand for in each lane.
struct Scales {
    alignas(64) float sc[kLanes], m[kLanes];    // whole numbers
    alignas(64) float d[kLanes], dmin[kLanes];  // of the lane's block, in units of the tile
    half d_bits[kLanes], dmin_bits[kLanes];

    void set_units(int lane, int lanes, float unit, float scale, float min) {
        const bool whole = lanes > 1;
        const half a = scale_bits(scale * unit, whole), b = scale_bits(min * unit, whole);
        const float per_unit = 1.0f / unit;
        for (int j = lane; j < lane + lanes; ++j) {
            d_bits[j] = a, dmin_bits[j] = b;
            d[j] = half_to_float(a) * per_unit, dmin[j] = half_to_float(b) * per_unit;
        }
    }
};

// Codes (Len, 16).
template <int Len>
struct Codes {
    alignas(64) int8_t q[Len][kLanes];
};

}  // namespace
}  // namespace starcoder
