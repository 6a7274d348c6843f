// What the bytes of each type mean: rows of blocks -> rows of floats, plain and exact.
#include "types/decode.h"

#include <algorithm>
#include <cstring>

#include "types/floats.h"

namespace starcoder {

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

template <Type Kind>
void split_plain(const typename Quantized<Kind>::Block* row, int64_t g, int64_t n_cols,
                 RowGroup& out) {
    using Panel = typename Quantized<Kind>::Panel;
    for (int i = 0; i < kBlocks; ++i) {
        out.scale[i] = out.min[i] = 0;
        if (const int64_t b = g * kBlocks + i; b < n_cols / 32) {
            codes(row[b], out.code + 32 * i);
            out.scale[i] = row[b].d;
            if constexpr (Panel::Min) out.min[i] = row[b].m;
        } else {
            std::memset(out.code + 32 * i, Panel::Codebook ? 0 : Panel::Zero, 32);
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

// Bit `at` of code 32 s + l of half h is bit 4 h + s of byte l.
void add_high_bits(const uint8_t* bits, int h, int at, uint8_t* code) {
    for (int s = 0; s < 4; ++s)
        for (int l = 0; l < 32; ++l)
            code[32 * s + l] |= static_cast<uint8_t>((bits[l] >> (4 * h + s) & 1) << at);
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
    add_high_bits(b.hmask, h, 2, out.code);
    scales_half(b, h, out);
}

void split_half(const BlockQ4_K& b, int h, RowGroup& out) {
    codes_45(b.qs, h, out.code);
    scales_half(b, h, out);
}

void split_half(const BlockQ5_K& b, int h, RowGroup& out) {
    codes_45(b.qs, h, out.code);
    add_high_bits(b.qh, h, 4, out.code);
    scales_half(b, h, out);
}

void scales_half(const BlockQ6_K& b, int h, RowGroup& out) {
    std::memcpy(out.sc, b.scales + 8 * h, 8);
    out.d = b.d;
}

void split_half(const BlockQ6_K& b, int h, RowGroup& out) {
    for (int s = 0; s < 4; ++s)
        for (int l = 0; l < 32; ++l) {
            const int low = (b.ql[64 * h + 32 * (s % 2) + l] >> (4 * (s / 2))) & 15;
            const int high = (b.qh[32 * h + l] >> (2 * s)) & 3;
            out.code[32 * s + l] = static_cast<uint8_t>(low | high << 4);
        }
    scales_half(b, h, out);
}

}  // namespace

template <Type Kind>
void split(const typename Quantized<Kind>::Block* row, int64_t g, int64_t n_cols, RowGroup& out) {
    if constexpr (Quantized<Kind>::Panel::Nested)
        split_half(row[g / 2], static_cast<int>(g % 2), out);
    else
        split_plain<Kind>(row, g, n_cols, out);
}

template <Type Kind>
void split_scales(const typename Quantized<Kind>::Block* row, int64_t g, RowGroup& out) {
    if constexpr (Quantized<Kind>::Panel::Nested)
        scales_half(row[g / 2], static_cast<int>(g % 2), out);
}

#define X(name, ...)                                                                  \
    template void split<Type::name>(const Block##name*, int64_t, int64_t, RowGroup&); \
    template void split_scales<Type::name>(const Block##name*, int64_t, RowGroup&);
STARCODER_QUANTIZED_TYPES(X)
#undef X

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
    return visit<Quantized>(type, [](auto kind) { return kind.kBlockLen; });
}

int block_bytes(Type type) {
    if (is_float(type))
        return visit<Float>(type,
                            [](auto kind) { return int{sizeof(typename decltype(kind)::Bits)}; });
    return visit<Quantized>(type,
                            [](auto kind) { return int{sizeof(typename decltype(kind)::Block)}; });
}

void dequantize(Type type, const void* data, int64_t n_rows, int64_t n_cols, float* out) {
    if (is_float(type)) return widen_floats(type, data, n_rows * n_cols, out);
    visit<Quantized>(type, [&](auto kind) {
        const auto* row = static_cast<const typename decltype(kind)::Block*>(data);
        for (int64_t r = 0; r < n_rows; ++r, row += n_cols / kind.kBlockLen) {
            RowGroup group;
            for (int64_t k = 0; k < n_cols; k += kGroup) {
                split<kind.kType>(row, k / kGroup, n_cols, group);
                const int64_t n = std::min<int64_t>(kGroup, n_cols - k);
                widen<typename decltype(kind)::Panel>(group, n, out + r * n_cols + k);
            }
        }
    });
}

}  // namespace starcoder
