// What the bytes of each type mean: rows of blocks <-> rows of floats, plain and exact.
#include "types/decode.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace starcoder {

// Both follow IEEE 754; the hardware conversions of the wide kernels give the same bits.

float half_to_float(half h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return __builtin_bit_cast(float, sign | wide << 23 | mantissa << 13);
}

half float_to_half(float f) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, f), magnitude = bits & 0x7fffffff;
    const auto sign = static_cast<half>((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000)  // NaN, made quiet
        return static_cast<half>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds beyond 65504
    if (magnitude < 0x38800000) {                       // subnormal: let the adder round at 2^-24
        const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        return static_cast<half>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000));
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return static_cast<half>(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

// ---- blocks of 32 ----

namespace {

void nibbles(const uint8_t* qs, uint8_t* code) {
    for (int j = 0; j < 16; ++j) {
        code[j] = qs[j] & 15;
        code[j + 16] = qs[j] >> 4;
    }
}

void fifth_bits(uint32_t qh, uint8_t* code) {
    for (int j = 0; j < 32; ++j) code[j] |= static_cast<uint8_t>(((qh >> j) & 1) << 4);
}

void codes(const BlockQ4_0& b, uint8_t* code) { nibbles(b.qs, code); }
void codes(const BlockQ4_1& b, uint8_t* code) { nibbles(b.qs, code); }
void codes(const BlockIQ4_NL& b, uint8_t* code) { nibbles(b.qs, code); }
void codes(const BlockQ5_0& b, uint8_t* code) {
    nibbles(b.qs, code);
    fifth_bits(b.qh, code);
}
void codes(const BlockQ5_1& b, uint8_t* code) {
    nibbles(b.qs, code);
    fifth_bits(b.qh, code);
}
void codes(const BlockQ8_0& b, uint8_t* code) {
    for (int j = 0; j < 32; ++j) code[j] = static_cast<uint8_t>(b.qs[j] ^ 0x80);
}

template <class Block>
half minimum(const Block& b) {
    if constexpr (requires { b.m; })
        return b.m;
    else
        return 0;
}

template <class Block, class Panel>
void split_plain(const Block* row, int64_t g, int64_t n_cols, RowGroup& out) {
    for (int i = 0; i < kBlocks; ++i) {
        if (const int64_t b = g * kBlocks + i; b < n_cols / 32) {
            codes(row[b], out.code + 32 * i);
            out.scale[i] = row[b].d;
            out.min[i] = minimum(row[b]);
        } else {
            std::memset(out.code + 32 * i, Panel::Codebook ? 0 : Panel::Zero, 32);
            out.scale[i] = out.min[i] = 0;
        }
    }
}

// ---- blocks of 256: group g is half h = g % 2 of a block ----

// Eight scales and eight minima of 6 bits in 12 bytes: 4 + 4 in the low six bits of bytes 0..7;
// the later four have their low nibbles in bytes 8..11, their high bits on top of bytes 0..7.
void six_bits(const uint8_t* s, int i, int8_t& sc, int8_t& m) {
    if (i < 4) {
        sc = static_cast<int8_t>(s[i] & 63);
        m = static_cast<int8_t>(s[i + 4] & 63);
    } else {
        sc = static_cast<int8_t>((s[i + 4] & 15) | (s[i - 4] >> 6 << 4));
        m = static_cast<int8_t>((s[i + 4] >> 4) | (s[i] >> 6 << 4));
    }
}

template <class Block>
    requires std::is_same_v<Block, BlockQ4_K> || std::is_same_v<Block, BlockQ5_K>
void scales_half(const Block& b, int h, RowGroup& out) {
    for (int i = 0; i < 4; ++i) six_bits(b.scales, 4 * h + i, out.sc[i], out.m[i]);
    out.d = b.d;
    out.dmin = b.dmin;
}

void codes_45(const uint8_t* qs, int h, uint8_t* code) {
    for (int c = 0; c < 2; ++c) {
        const uint8_t* q = qs + 32 * (2 * h + c);
        for (int l = 0; l < 32; ++l) {
            code[64 * c + l] = q[l] & 15;
            code[64 * c + 32 + l] = q[l] >> 4;
        }
    }
}

void codes_23(const uint8_t* qs, int h, uint8_t* code) {
    for (int s = 0; s < 4; ++s)
        for (int l = 0; l < 32; ++l) code[32 * s + l] = (qs[32 * h + l] >> (2 * s)) & 3;
}

void scales_half(const BlockQ2_K& b, int h, RowGroup& out) {
    for (int i = 0; i < 8; ++i) {
        out.sc[i] = static_cast<int8_t>(b.scales[8 * h + i] & 15);
        out.m[i] = static_cast<int8_t>(b.scales[8 * h + i] >> 4);
    }
    out.d = b.d;
    out.dmin = b.dmin;
}

void split_half(const BlockQ2_K& b, int h, RowGroup& out) {
    codes_23(b.qs, h, out.code);
    scales_half(b, h, out);
}

void scales_half(const BlockQ3_K& b, int h, RowGroup& out) {
    for (int i = 0; i < 8; ++i) {  // scale 8 h + i: nibble h of byte i, two bits of bytes 8..11
        const int low = (b.scales[i] >> (4 * h)) & 15;
        const int high = (b.scales[8 + i % 4] >> (2 * (2 * h + i / 4))) & 3;
        out.sc[i] = static_cast<int8_t>((low | high << 4) - 32);
    }
    out.d = b.d;
}

void split_half(const BlockQ3_K& b, int h, RowGroup& out) {
    codes_23(b.qs, h, out.code);
    for (int s = 0; s < 4; ++s)
        for (int l = 0; l < 32; ++l)
            out.code[32 * s + l] |= static_cast<uint8_t>(((b.hmask[l] >> (4 * h + s)) & 1) << 2);
    scales_half(b, h, out);
}

void split_half(const BlockQ4_K& b, int h, RowGroup& out) {
    codes_45(b.qs, h, out.code);
    scales_half(b, h, out);
}

void split_half(const BlockQ5_K& b, int h, RowGroup& out) {
    codes_45(b.qs, h, out.code);
    for (int s = 0; s < 4; ++s)
        for (int l = 0; l < 32; ++l)
            out.code[32 * s + l] |= static_cast<uint8_t>(((b.qh[l] >> (4 * h + s)) & 1) << 4);
    scales_half(b, h, out);
}

void split_half(const BlockQ6_K& b, int h, RowGroup& out) {
    for (int s = 0; s < 4; ++s)
        for (int l = 0; l < 32; ++l) {
            const int low = (b.ql[64 * h + 32 * (s % 2) + l] >> (4 * (s / 2))) & 15;
            const int high = (b.qh[32 * h + l] >> (2 * s)) & 3;
            out.code[32 * s + l] = static_cast<uint8_t>(low | high << 4);
        }
    std::memcpy(out.sc, b.scales + 8 * h, 8);
    out.d = b.d;
}

}  // namespace

template <class Block>
void split(const Block* row, int64_t g, int64_t n_cols, RowGroup& out) {
    if constexpr (requires { split_half(*row, 0, out); })
        split_half(row[g / 2], static_cast<int>(g % 2), out);
    else if constexpr (std::is_same_v<Block, BlockIQ4_NL>)
        split_plain<Block, PanelIQ4_NL>(row, g, n_cols, out);
    else if constexpr (std::is_same_v<Block, BlockQ8_0>)
        split_plain<Block, PanelQ8_0>(row, g, n_cols, out);
    else if constexpr (std::is_same_v<Block, BlockQ5_0>)
        split_plain<Block, PanelQ5_0>(row, g, n_cols, out);
    else if constexpr (std::is_same_v<Block, BlockQ5_1>)
        split_plain<Block, PanelQ5_1>(row, g, n_cols, out);
    else if constexpr (std::is_same_v<Block, BlockQ4_0>)
        split_plain<Block, PanelQ4_0>(row, g, n_cols, out);
    else
        split_plain<Block, PanelQ4_1>(row, g, n_cols, out);
}

template <class Block>
void split_scales(const Block* row, int64_t g, RowGroup& out) {
    scales_half(row[g / 2], static_cast<int>(g % 2), out);
}

template void split_scales(const BlockQ2_K*, int64_t, RowGroup&);
template void split_scales(const BlockQ3_K*, int64_t, RowGroup&);
template void split_scales(const BlockQ4_K*, int64_t, RowGroup&);

template void split(const BlockQ4_0*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ4_1*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ5_0*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ5_1*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ8_0*, int64_t, int64_t, RowGroup&);
template void split(const BlockIQ4_NL*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ2_K*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ3_K*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ4_K*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ5_K*, int64_t, int64_t, RowGroup&);
template void split(const BlockQ6_K*, int64_t, int64_t, RowGroup&);

// ---- rows -> floats ----

namespace {

template <class Panel>
void widen(const RowGroup& group, int64_t n, float* out) {
    for (int64_t k = 0; k < n; ++k) {
        const int64_t sub = k * Panel::Subs / kGroup;
        const int code = group.code[k];
        const int value = Panel::Codebook ? kCodebookIQ4NL[code] : code - Panel::Zero;
        if constexpr (Panel::Nested) {
            const float scale = half_to_float(group.d) * group.sc[sub];
            out[k] = scale * static_cast<float>(value);
            if constexpr (Panel::Min) out[k] -= half_to_float(group.dmin) * group.m[sub];
        } else {
            out[k] = half_to_float(group.scale[sub]) * static_cast<float>(value);
            if constexpr (Panel::Min) out[k] += half_to_float(group.min[sub]);
        }
    }
}

void widen_floats(Type type, const void* data, int64_t n, float* out) {
    if (type == Type::F32)
        std::memcpy(out, data, static_cast<size_t>(n) * 4);
    else
        for (int64_t i = 0; i < n; ++i) {
            const auto bits = number_at<uint16_t>(data, i);
            out[i] = type == Type::F16 ? half_to_float(bits) : bf16_to_float(bits);
        }
}

}  // namespace

int block_len(Type type) {
    if (is_float(type)) return 1;
    return type >= Type::Q2_K && type <= Type::Q6_K ? 256 : 32;
}

int block_bytes(Type type) {
    if (is_float(type)) return type == Type::F32 ? 4 : 2;
    return dispatch(type,
                    [](auto block, auto) { return int(sizeof(typename decltype(block)::type)); });
}

void dequantize(Type type, const void* data, int64_t n_rows, int64_t n_cols, float* out) {
    if (is_float(type)) return widen_floats(type, data, n_rows * n_cols, out);
    dispatch(type, [&](auto block, auto panel) {
        using Block = typename decltype(block)::type;
        const int64_t blocks_a_row = n_cols / block_len(type);
        for (int64_t r = 0; r < n_rows; ++r) {
            const auto* row = static_cast<const Block*>(data) + r * blocks_a_row;
            RowGroup group;
            for (int64_t k = 0; k < n_cols; k += kGroup) {
                split(row, k / kGroup, n_cols, group);
                const int64_t n = std::min<int64_t>(kGroup, n_cols - k);
                widen<typename decltype(panel)::type>(group, n, out + r * n_cols + k);
            }
        }
    });
}

}  // namespace starcoder
