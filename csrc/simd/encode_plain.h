// Floats -> blocks of Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0, the bytes of ggml's reference. Part of
// loops.h.
//
// Plain loops that the compiler turns into vectors; reductions run over integers, where the order
// cannot matter.
#pragma once

namespace starcoder {
namespace {

// The first of 32 with this magnitude: which sign a tie has.
float first_of(const float* x, int32_t top) {
    int at = 31;
    for (int i = 0; i < 32; ++i) at = magnitude(x[i]) == top && i < at ? i : at;
    return x[at];
}

// An integer that is ordered as floats are, and the way back. -0 is +0.
int32_t rank(float x) {
    const int32_t bits = __builtin_bit_cast(int32_t, x);
    return bits < 0 ? -magnitude(x) : bits;
}
float unrank(int32_t rank) {
    const float x = __builtin_bit_cast(float, rank < 0 ? -rank : rank);
    return rank < 0 ? -x : x;
}

// The least and the greatest of 32, as ranks.
struct Range {
    int32_t least, most;

    explicit Range(const float* x) : least(rank(x[0])), most(least) {
        for (int i = 1; i < 32; ++i) least = rank(x[i]) < least ? rank(x[i]) : least;
        for (int i = 1; i < 32; ++i) most = rank(x[i]) > most ? rank(x[i]) : most;
    }

    int32_t top() const { return -least > most ? -least : most; }  // the magnitude of the largest
};

struct Largest {  // all that Q8_0 asks for
    int32_t bits;

    explicit Largest(const float* x) : bits(top_of(x, 32)) {}

    int32_t top() const { return bits; }
};

float inverse(float d) {
    const float id = d != 0 ? 1.0f / d : 0.0f;
    return magnitude(id) < kInfinity ? id : 0.0f;  // d below 2^-128 is zero as f16 too
}

// ---- blocks of 32, as ggml makes them ----

void pack_nibbles(const int32_t* q, uint8_t* qs) {
    for (int j = 0; j < 16; ++j) qs[j] = static_cast<uint8_t>((q[j] & 15) | (q[j + 16] & 15) << 4);
}

uint32_t fifth_bits(const int32_t* q) {
    uint32_t high = 0;
    for (int j = 0; j < 32; ++j) high |= static_cast<uint32_t>(q[j] >> 4 & 1) << j;
    return high;
}

// q = (x - low) * id + start, cut off after the point; in 0 .. top also where x - low overflows.
template <bool Fused>
void cut(const float* x, float low, float id, float start, int top, int32_t* q) {
    const auto most = static_cast<float>(top);
    for (int i = 0; i < 32; ++i) {
        float v = Fused ? __builtin_fmaf(x[i] - low, id, start) : (x[i] - low) * id + start;
        v = v > 0.0f ? v : 0.0f;
        q[i] = static_cast<int32_t>(v < most ? v : most);
    }
}

// Q4_0, Q5_0: the weight of largest magnitude is code 0, that is -Zero.
template <int Zero, bool Fused, class Block>
void encode_signed(const float* x, Range range, Block& b, int32_t* q) {
    const bool tie = range.most == -range.least && range.most != 0;  // zeros count as +0
    const float largest = tie ? first_of(x, range.most)
                              : unrank(range.most > -range.least ? range.most : range.least);
    const float d = largest / -Zero;
    b.d = float_to_half(d);
    cut<Fused>(x, 0.0f, inverse(d), Zero + 0.5f, 2 * Zero - 1, q);
}

// Q4_1, Q5_1: from the least to the greatest weight.
template <int Top, bool Fused, class Block>
void encode_ranged(const float* x, Range range, Block& b, int32_t* q) {
    const float low = range.least == 0 ? first_of(x, 0) : unrank(range.least);  // which zero?
    const float d = (unrank(range.most) - low) / Top;
    b.d = float_to_half(d);
    b.m = float_to_half(low);
    cut<Fused>(x, low, inverse(d), 0.5f, Top, q);
}

template <bool Fused, class Block>
void encode_block(const float* x, Range range, Block& b) {
    int32_t q[32];
    if constexpr (std::is_same_v<Block, BlockQ4_0>) encode_signed<8, Fused>(x, range, b, q);
    if constexpr (std::is_same_v<Block, BlockQ5_0>) encode_signed<16, Fused>(x, range, b, q);
    if constexpr (std::is_same_v<Block, BlockQ4_1>) encode_ranged<15, Fused>(x, range, b, q);
    if constexpr (std::is_same_v<Block, BlockQ5_1>) encode_ranged<31, Fused>(x, range, b, q);
    if constexpr (requires { b.qh; }) b.qh = fifth_bits(q);
    pack_nibbles(q, b.qs);
}

template <bool>
void encode_block(const float* x, Largest largest, BlockQ8_0& b) {
    const float d = unrank(largest.top()) / 127, id = inverse(d);
    b.d = float_to_half(d);
    for (int i = 0; i < 32; ++i) {  // to nearest, ties away from zero
        const float v = x[i] * id;
        const auto whole = static_cast<int32_t>(v);
        const float rest = v - static_cast<float>(whole);
        b.qs[i] = static_cast<int8_t>(whole + (rest >= 0.5f) - (rest <= -0.5f));
    }
}

template <bool Fused, class Block>
void encode_blocks(const float* x, int64_t n, Block* out) {
    using Seen = std::conditional_t<std::is_same_v<Block, BlockQ8_0>, Largest, Range>;
    for (int64_t i = 0; i < n / 32; ++i, x += 32) {
        if (const Seen seen(x); seen.top() < kInfinity) {
            encode_block<Fused>(x, seen, out[i]);
        } else {
            out[i] = {};
            out[i].d = kNotANumber;
        }
    }
}

template <class Block>
void encode_plain(const float* x, int64_t n, bool fused, Block* out) {
    if (fused)
        encode_blocks<true>(x, n, out);
    else
        encode_blocks<false>(x, n, out);
}

}  // namespace
}  // namespace starcoder
