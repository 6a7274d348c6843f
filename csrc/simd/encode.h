// Floats -> blocks, in blocks of 32 or 256 that know nothing of each other: part of loops.h.
//
// Plain types (Q4_0 ... Q8_0) follow ggml's reference to the bit: plain loops that the compiler
// turns into vectors; reductions run over integers, where the order cannot matter. Nested types and
// IQ4_NL are ours: encode_affine.h and encode_scaled.h find their scales and codes, which become
// bytes here.
//
// A block with a weight that is not finite gets a scale that is not a number: it stays visible.
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

// ---- codes and scales -> bytes; the way back is in quantize.cpp ----

template <int Len>
void untile(const Coded<Len>& codes, int lane, int lanes, uint8_t* out) {
    for (int j = 0; j < lanes; ++j)
        for (int i = 0; i < Len; ++i) out[j * Len + i] = static_cast<uint8_t>(codes.q[i][lane + j]);
}

void pack_two_bits(const uint8_t* code, uint8_t* qs) {
    for (int h = 0; h < 2; ++h)
        for (int l = 0; l < 32; ++l) {
            const uint8_t* c = code + 128 * h + l;
            qs[32 * h + l] = static_cast<uint8_t>((c[0] & 3) | (c[32] & 3) << 2 | (c[64] & 3) << 4 |
                                                  (c[96] & 3) << 6);
        }
}

// Bit g of byte l: bit `at` of code 32 g + l.
void pack_high_bits(const uint8_t* code, int at, uint8_t* qh) {
    for (int l = 0; l < 32; ++l) {
        int bits = 0;
        for (int g = 0; g < 8; ++g) bits |= (code[32 * g + l] >> at & 1) << g;
        qh[l] = static_cast<uint8_t>(bits);
    }
}

void pack_pairs(const uint8_t* code, uint8_t* qs) {
    for (int c = 0; c < 4; ++c)
        for (int l = 0; l < 32; ++l)
            qs[32 * c + l] =
                static_cast<uint8_t>((code[64 * c + l] & 15) | (code[64 * c + 32 + l] & 15) << 4);
}

void pack_six_bits(const Nested& nested, int lane, uint8_t* s) {
    int sc[8], m[8];
    for (int i = 0; i < 8; ++i) sc[i] = int(nested.sc[lane + i]), m[i] = int(nested.m[lane + i]);
    for (int i = 0; i < 4; ++i) {
        s[i] = static_cast<uint8_t>(sc[i] | sc[i + 4] >> 4 << 6);
        s[i + 4] = static_cast<uint8_t>(m[i] | m[i + 4] >> 4 << 6);
        s[i + 8] = static_cast<uint8_t>((sc[i + 4] & 15) | (m[i + 4] & 15) << 4);
    }
}

void pack_block(const uint8_t* code, const Nested& nested, int lane, BlockQ4_K& b) {
    b.d = nested.d_bits[lane];
    b.dmin = nested.dmin_bits[lane];
    pack_six_bits(nested, lane, b.scales);
    pack_pairs(code, b.qs);
}

void pack_block(const uint8_t* code, const Nested& nested, int lane, BlockQ5_K& b) {
    b.d = nested.d_bits[lane];
    b.dmin = nested.dmin_bits[lane];
    pack_six_bits(nested, lane, b.scales);
    pack_pairs(code, b.qs);
    pack_high_bits(code, 4, b.qh);
}

void pack_block(const uint8_t* code, const Nested& nested, int, BlockQ2_K& b) {
    b.d = nested.d_bits[0];
    b.dmin = nested.dmin_bits[0];
    for (int i = 0; i < 16; ++i)
        b.scales[i] = static_cast<uint8_t>(int(nested.sc[i]) | int(nested.m[i]) << 4);
    pack_two_bits(code, b.qs);
}

void pack_block(const uint8_t* code, const Nested& nested, int, BlockQ3_K& b) {
    b.d = nested.d_bits[0];
    pack_two_bits(code, b.qs);
    pack_high_bits(code, 2, b.hmask);
    int sc[16];
    for (int i = 0; i < 16; ++i) sc[i] = int(nested.sc[i]) + 32;
    for (int i = 0; i < 8; ++i)
        b.scales[i] = static_cast<uint8_t>((sc[i] & 15) | (sc[i + 8] & 15) << 4);
    for (int i = 0; i < 4; ++i)
        b.scales[i + 8] = static_cast<uint8_t>(sc[i] >> 4 | sc[i + 4] >> 4 << 2 |
                                               sc[i + 8] >> 4 << 4 | sc[i + 12] >> 4 << 6);
}

void pack_block(const uint8_t* code, const Nested& nested, int, BlockQ6_K& b) {
    b.d = nested.d_bits[0];
    for (int i = 0; i < 16; ++i) b.scales[i] = static_cast<int8_t>(nested.sc[i]);
    for (int h = 0; h < 2; ++h)
        for (int l = 0; l < 64; ++l)
            b.ql[64 * h + l] =
                static_cast<uint8_t>((code[128 * h + l] & 15) | (code[128 * h + 64 + l] & 15) << 4);
    uint8_t high[256];
    for (int i = 0; i < 256; ++i) high[i] = code[i] >> 4;
    pack_two_bits(high, b.qh);
}

void pack_block(const uint8_t* code, const Nested& nested, int lane, BlockIQ4_NL& b) {
    b.d = nested.d_bits[lane];
    for (int j = 0; j < 16; ++j) b.qs[j] = static_cast<uint8_t>(code[j] | code[j + 16] << 4);
}

// ---- each type: what a tile of it is, and how hard to search ----

void encode_tile(const Tile<32>& tile, Nested& nested, Coded<32>& codes, BlockQ4_K*) {
    encode_affine<15, 63, 12>(tile, 8, nested, codes);
}
void encode_tile(const Tile<32>& tile, Nested& nested, Coded<32>& codes, BlockQ5_K*) {
    encode_affine<31, 63, 8>(tile, 8, nested, codes);
}
void encode_tile(const Tile<16>& tile, Nested& nested, Coded<16>& codes, BlockQ2_K*) {
    encode_affine<3, 15, 16>(tile, 16, nested, codes);
}
void encode_tile(const Tile<16>& tile, Nested& nested, Coded<16>& codes, BlockQ3_K*) {
    encode_scaled<Even<4>, 32, 12>(tile, nested, codes);
}
void encode_tile(const Tile<16>& tile, Nested& nested, Coded<16>& codes, BlockQ6_K*) {
    encode_scaled<Even<32>, 128, 8>(tile, nested, codes);
}
void encode_tile(const Tile<32>& tile, Nested& nested, Coded<32>& codes, BlockIQ4_NL*) {
    alignas(64) float scale[kLanes];
    for (int v = 0; v < kLanes; v += W) {
        ScaleSearch<Book, 32> search(tile, v);
        search.run(8, 8.0f);
        store(scale + v, search.scale);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        nested.sc[lane] = 1.0f;
        nested.set_scales(lane, 1, tile.unit[lane], scale[lane], 0.0f);
    }
    for (int v = 0; v < kLanes; v += W) code_scale<Book>(tile, v, nested, codes);
}

template <int Len, int Lanes, class Block>
void encode_tiles(const float* x, int64_t n, Block* out) {
    constexpr int kAtOnce = kLanes / Lanes, kWeights = Lanes * Len;
    for (int64_t left = n / kWeights; left > 0; left -= kAtOnce, x += kAtOnce * kWeights) {
        const int n_blocks = left < kAtOnce ? static_cast<int>(left) : kAtOnce;
        Tile<Len> tile;
        Coded<Len> codes;
        Nested nested;
        fill(x, n_blocks, Lanes, tile);
        encode_tile(tile, nested, codes, out);
        for (int b = 0; b < n_blocks; ++b, ++out) {
            uint8_t code[kWeights];
            untile(codes, b * Lanes, Lanes, code);
            pack_block(code, nested, b * Lanes, *out);
            if (!tile.finite[b * Lanes]) {
                *out = {};
                out->d = kNotANumber;
            }
        }
    }
}

// ---- floats ----

void narrow(const float* from, int64_t k, half* to) {
    int64_t i = 0;
    for (; i + W <= k; i += W) store_half(to + i, load(from + i));
    if (i == k) return;
    alignas(64) float tail[W] = {};
    alignas(64) half out[W];
    for (int64_t j = i; j < k; ++j) tail[j - i] = from[j];
    store_half(out, load(tail));
    for (int64_t j = i; j < k; ++j) to[j] = out[j - i];
}

void encode_bf16(const float* x, int64_t n, uint16_t* out) {
    for (int64_t i = 0; i < n; ++i) {
        const auto bits = __builtin_bit_cast(uint32_t, x[i]);
        const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1), quiet = bits | 0x400000;
        out[i] = static_cast<uint16_t>(((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded) >> 16);
    }
}

void widen_half(const half* x, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load_half(x + i));
    for (; i < n; ++i) out[i] = half_to_float(x[i]);
}

void encode(Type type, const float* x, int64_t n, bool fused, void* out) {
    switch (type) {
        case Type::F32: __builtin_memcpy(out, x, static_cast<size_t>(n) * 4); break;
        case Type::F16: narrow(x, n, static_cast<half*>(out)); break;
        case Type::BF16: encode_bf16(x, n, static_cast<uint16_t*>(out)); break;
        case Type::Q4_0: encode_plain(x, n, fused, static_cast<BlockQ4_0*>(out)); break;
        case Type::Q4_1: encode_plain(x, n, fused, static_cast<BlockQ4_1*>(out)); break;
        case Type::Q5_0: encode_plain(x, n, fused, static_cast<BlockQ5_0*>(out)); break;
        case Type::Q5_1: encode_plain(x, n, fused, static_cast<BlockQ5_1*>(out)); break;
        case Type::Q8_0: encode_plain(x, n, fused, static_cast<BlockQ8_0*>(out)); break;
        case Type::Q2_K: encode_tiles<16, 16>(x, n, static_cast<BlockQ2_K*>(out)); break;
        case Type::Q3_K: encode_tiles<16, 16>(x, n, static_cast<BlockQ3_K*>(out)); break;
        case Type::Q4_K: encode_tiles<32, 8>(x, n, static_cast<BlockQ4_K*>(out)); break;
        case Type::Q5_K: encode_tiles<32, 8>(x, n, static_cast<BlockQ5_K*>(out)); break;
        case Type::Q6_K: encode_tiles<16, 16>(x, n, static_cast<BlockQ6_K*>(out)); break;
        case Type::IQ4_NL: encode_tiles<32, 1>(x, n, static_cast<BlockIQ4_NL*>(out)); break;
    }
}

}  // namespace
}  // namespace starcoder
