// Blocks taken apart: the one definition of what quantized bytes mean, for packing and widening.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "types/blocks.h"
#include "kernels.h"
#include "types/panels.h"

namespace starcoder {

inline float bf16_to_float(uint16_t h) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(h) << 16);
}

// Number i of a file's, which may begin at any byte.
template <class T>
T number_at(const void* data, int64_t i) {
    T number;
    std::memcpy(&number, static_cast<const uint8_t*>(data) + i * int64_t{sizeof(T)}, sizeof(T));
    return number;
}

// 128 inputs of one row, as `panels.h` wants them. Which scales are set depends on the type.
struct RowGroup {
    uint8_t code[kGroup];
    half scale[4], min[4];  // plain types, one a block of 32
    int8_t sc[8], m[8];     // nested types, one a sub of 16 or 32
    half d, dmin;
};

// Group `g` of the row at `row`; `n_cols` inputs in all. Inputs past the end come out as zero.
template <class Block>
void split(const Block* row, int64_t g, int64_t n_cols, RowGroup& out);

// The scales alone, of nested types.
template <class Block>
void split_scales(const Block* row, int64_t g, RowGroup& out);

// Calls f(std::type_identity<Block>, std::type_identity<Panel>) for a quantized type.
template <class F>
auto dispatch(Type type, F&& f) {
    using std::type_identity;
    switch (type) {
        case Type::Q4_0: return f(type_identity<BlockQ4_0>(), type_identity<PanelQ4_0>());
        case Type::Q4_1: return f(type_identity<BlockQ4_1>(), type_identity<PanelQ4_1>());
        case Type::Q5_0: return f(type_identity<BlockQ5_0>(), type_identity<PanelQ5_0>());
        case Type::Q5_1: return f(type_identity<BlockQ5_1>(), type_identity<PanelQ5_1>());
        case Type::Q2_K: return f(type_identity<BlockQ2_K>(), type_identity<PanelQ2_K>());
        case Type::Q3_K: return f(type_identity<BlockQ3_K>(), type_identity<PanelQ3_K>());
        case Type::Q4_K: return f(type_identity<BlockQ4_K>(), type_identity<PanelQ4_K>());
        case Type::Q5_K: return f(type_identity<BlockQ5_K>(), type_identity<PanelQ5_K>());
        case Type::Q6_K: return f(type_identity<BlockQ6_K>(), type_identity<PanelQ6_K>());
        case Type::IQ4_NL: return f(type_identity<BlockIQ4_NL>(), type_identity<PanelIQ4_NL>());
        default: return f(type_identity<BlockQ8_0>(), type_identity<PanelQ8_0>());
    }
}

inline bool is_float(Type type) {
    return type == Type::F32 || type == Type::F16 || type == Type::BF16;
}

}  // namespace starcoder
