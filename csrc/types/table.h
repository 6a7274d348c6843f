// THE list of types of weights. Every switch over types is made from it, so a new row reaches all
// of them; what still lacks a case for it does not compile.
#pragma once

#include <cstdint>

namespace starcoder {

// Float types: name, ggml's number, the unsigned integer that holds the bits of one weight.
#define STARCODER_FLOAT_TYPES(X) \
    X(F32, 0, uint32_t)          \
    X(F16, 1, uint16_t)          \
    X(BF16, 30, uint16_t)

// Quantized types. In a file a block of so many weights is `Block##name` (blocks.h); in memory the
// codes have so many bits, and of the 128 inputs of a group every `group / sub-blocks` share a
// scale (panels.h):
//
//   scales    Plain: an f16 for each sub-block. Nested: small integers under one f16
//   min       weights are scale * (code - zero) + min
//   zero      the code that stands for 0
//   codebook  codes are indices of IQ4_NL's sixteen values
//
// clang-format off
//    name    number  block  bits  sub-blocks  scales   min    zero  codebook      // bits a weight:
#define STARCODER_QUANTIZED_TYPES(X)                                               /* file, memory */ \
    X(Q4_0,   2,      32,    4,    4,          Plain,   false, 8,    false)        /* 4.5     4.5  */ \
    X(Q4_1,   3,      32,    4,    4,          Plain,   true,  0,    false)        /* 5       5    */ \
    X(Q5_0,   6,      32,    5,    4,          Plain,   false, 16,   false)        /* 5.5     5.5  */ \
    X(Q5_1,   7,      32,    5,    4,          Plain,   true,  0,    false)        /* 6       6    */ \
    X(Q8_0,   8,      32,    8,    4,          Plain,   false, 128,  false)        /* 8.5     8.5  */ \
    X(Q2_K,   10,     256,   4,    8,          Nested,  true,  0,    false)        /* 2.625   5.25 */ \
    X(Q3_K,   11,     256,   4,    8,          Nested,  false, 4,    false)        /* 3.4375  4.75 */ \
    X(Q4_K,   12,     256,   4,    4,          Nested,  true,  0,    false)        /* 4.5     4.75 */ \
    X(Q5_K,   13,     256,   5,    4,          Nested,  true,  0,    false)        /* 5.5     5.75 */ \
    X(Q6_K,   14,     256,   6,    8,          Nested,  false, 32,   false)        /* 6.5625  6.75 */ \
    X(IQ4_NL, 20,     32,    4,    4,          Plain,   false, 128,  true)         /* 4.5     4.5  */
// clang-format on

enum class Type : int {
#define X(name, number, ...) name = number,
    STARCODER_FLOAT_TYPES(X) STARCODER_QUANTIZED_TYPES(X)
#undef X
};

constexpr bool is_float(Type type) {
    switch (type) {
#define X(name, ...) case Type::name:
        STARCODER_FLOAT_TYPES(X) return true;
        STARCODER_QUANTIZED_TYPES(X) return false;
#undef X
    }
    return false;
}

constexpr const char* name_of(Type type) {
    switch (type) {
#define X(name, ...) \
    case Type::name: return #name;
        STARCODER_FLOAT_TYPES(X)
        STARCODER_QUANTIZED_TYPES(X)
#undef X
    }
    return "";
}

}  // namespace starcoder
