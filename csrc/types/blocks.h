// Quantized weights as GGUF and legacy files hold them, to the byte: ggml's blocks.
//
// `decode.cpp` says what the bytes mean. Nothing here computes.
#pragma once

#include <cstdint>

#include "types/floats.h"
#include "types/table.h"

namespace starcoder {

#pragma pack(push, 1)

// 32 weights. Nibbles: byte j holds weight j (low) and weight j + 16 (high).
// Bit j of qh is the fifth bit of weight j.

struct BlockQ4_0 {  // w = d * (q - 8)
    half d;
    uint8_t qs[16];
};
struct BlockQ4_1 {  // w = d * q + m
    half d, m;
    uint8_t qs[16];
};
struct BlockQ5_0 {  // w = d * (q - 16)
    half d;
    uint32_t qh;
    uint8_t qs[16];
};
struct BlockQ5_1 {  // w = d * q + m
    half d, m;
    uint32_t qh;
    uint8_t qs[16];
};
struct BlockQ8_0 {  // w = d * q
    half d;
    int8_t qs[32];
};
struct BlockIQ4_NL {  // w = d * codebook[q]
    half d;
    uint8_t qs[16];
};

// 256 weights in groups with scales of their own.

struct BlockQ2_K {       // 16 groups of 16: w = d * sc * q - dmin * m
    uint8_t scales[16];  // low nibble sc, high nibble m
    uint8_t qs[64];      // 2 bits each: weight 128 h + 32 s + l is bits 2 s of byte 32 h + l
    half d, dmin;
};
struct BlockQ3_K {       // 16 groups of 16: w = d * (sc - 32) * (q - 4)
    uint8_t hmask[32];   // the third bit: weight 32 g + l is bit g of byte l
    uint8_t qs[64];      // the two low bits, placed as in Q2_K
    uint8_t scales[12];  // 16 scales of 6 bits
    half d;
};
struct BlockQ4_K {  // 8 groups of 32: w = d * sc * q - dmin * m
    half d, dmin;
    uint8_t scales[12];  // 8 scales and 8 minima of 6 bits
    uint8_t qs[128];     // byte 32 c + l holds weight 64 c + l (low) and 64 c + 32 + l (high)
};
struct BlockQ5_K {  // 8 groups of 32: w = d * sc * q - dmin * m
    half d, dmin;
    uint8_t scales[12];
    uint8_t qh[32];   // the fifth bit: weight 32 g + l is bit g of byte l
    uint8_t qs[128];  // placed as in Q4_K
};
struct BlockQ6_K {    // 16 groups of 16: w = d * sc * (q - 32)
    uint8_t ql[128];  // low nibbles: byte 64 h + l (l < 64) holds weights 128 h + l and + 64
    uint8_t qh[64];   // high bits: weight 128 h + 32 s + l is bits 2 s of byte 32 h + l
    int8_t scales[16];
    half d;
};

#pragma pack(pop)

static_assert(sizeof(BlockQ4_0) == 18);
static_assert(sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22);
static_assert(sizeof(BlockQ5_1) == 24);
static_assert(sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockIQ4_NL) == 18);
static_assert(sizeof(BlockQ2_K) == 84);
static_assert(sizeof(BlockQ3_K) == 110);
static_assert(sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176);
static_assert(sizeof(BlockQ6_K) == 210);

// The sixteen values of IQ4_NL.
constexpr int8_t kCodebookIQ4NL[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                       1,    13,   25,  38,  53,  69,  89,  113};

}  // namespace starcoder
