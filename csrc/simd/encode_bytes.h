// Codes and scales -> the bytes of a block: Q2_K ... Q6_K and IQ4_NL. The way back is in
// types/decode.cpp. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// The codes of one block, in the order of its weights.
template <int Len>
void untile(const Codes<Len>& codes, int lane, int lanes, uint8_t* out) {
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

// The low nibbles of 256 codes, those `Apart` from each other in one byte.
template <int Apart>
void pack_low_nibbles(const uint8_t* code, uint8_t* qs) {
    for (int c = 0; c < 128 / Apart; ++c, code += 2 * Apart, qs += Apart)
        for (int l = 0; l < Apart; ++l)
            qs[l] = static_cast<uint8_t>((code[l] & 15) | (code[Apart + l] & 15) << 4);
}

void pack_six_bits(const Scales& scales, int lane, uint8_t* s) {
    int sc[8], m[8];
    for (int i = 0; i < 8; ++i) sc[i] = int(scales.sc[lane + i]), m[i] = int(scales.m[lane + i]);
    for (int i = 0; i < 4; ++i) {
        s[i] = static_cast<uint8_t>(sc[i] | sc[i + 4] >> 4 << 6);
        s[i + 4] = static_cast<uint8_t>(m[i] | m[i + 4] >> 4 << 6);
        s[i + 8] = static_cast<uint8_t>((sc[i + 4] & 15) | (m[i + 4] & 15) << 4);
    }
}

template <class Block>
    requires std::is_same_v<Block, BlockQ4_K> || std::is_same_v<Block, BlockQ5_K>
void pack_block(const uint8_t* code, const Scales& scales, int lane, Block& b) {
    b.d = scales.d_bits[lane];
    b.dmin = scales.dmin_bits[lane];
    pack_six_bits(scales, lane, b.scales);
    pack_low_nibbles<32>(code, b.qs);
    if constexpr (std::is_same_v<Block, BlockQ5_K>) pack_high_bits(code, 4, b.qh);
}

void pack_block(const uint8_t* code, const Scales& scales, int, BlockQ2_K& b) {
    b.d = scales.d_bits[0];
    b.dmin = scales.dmin_bits[0];
    for (int i = 0; i < 16; ++i)
        b.scales[i] = static_cast<uint8_t>(int(scales.sc[i]) | int(scales.m[i]) << 4);
    pack_two_bits(code, b.qs);
}

void pack_block(const uint8_t* code, const Scales& scales, int, BlockQ3_K& b) {
    b.d = scales.d_bits[0];
    pack_two_bits(code, b.qs);
    pack_high_bits(code, 2, b.hmask);
    int sc[16];
    for (int i = 0; i < 16; ++i) sc[i] = int(scales.sc[i]) + 32;
    for (int i = 0; i < 8; ++i)
        b.scales[i] = static_cast<uint8_t>((sc[i] & 15) | (sc[i + 8] & 15) << 4);
    for (int i = 0; i < 4; ++i)
        b.scales[i + 8] = static_cast<uint8_t>(sc[i] >> 4 | sc[i + 4] >> 4 << 2 |
                                               sc[i + 8] >> 4 << 4 | sc[i + 12] >> 4 << 6);
}

void pack_block(const uint8_t* code, const Scales& scales, int, BlockQ6_K& b) {
    b.d = scales.d_bits[0];
    for (int i = 0; i < 16; ++i) b.scales[i] = static_cast<int8_t>(scales.sc[i]);
    pack_low_nibbles<64>(code, b.ql);
    uint8_t high[256];
    for (int i = 0; i < 256; ++i) high[i] = code[i] >> 4;
    pack_two_bits(high, b.qh);
}

void pack_block(const uint8_t* code, const Scales& scales, int lane, BlockIQ4_NL& b) {
    b.d = scales.d_bits[lane];
    for (int j = 0; j < 16; ++j) b.qs[j] = static_cast<uint8_t>(code[j] | code[j + 16] << 4);
}

}  // namespace
}  // namespace starcoder
