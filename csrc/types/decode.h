// Blocks taken apart: the one definition of what quantized bytes mean, for packing and widening.
#pragma once

#include <cstdint>

#include "types/panels.h"

namespace starcoder {

int block_len(Type type);    // weights in a block
int block_bytes(Type type);  // bytes of a block

// out (n_rows, n_cols) = the floats that the blocks at `data` stand for, exactly.
void dequantize(Type type, const void* data, int64_t n_rows, int64_t n_cols, float* out);

// 128 inputs of one row, as panels.h wants them. Which scales are set depends on the type.
struct RowGroup {
    uint8_t code[kGroup];
    half scale[4], min[4];  // plain types, one for each block of 32
    int8_t sc[8], m[8];     // nested types, one for each sub-block of 16 or 32
    half d, dmin;
};

// Group `g` of the row at `row`; `n_cols` inputs in all. Inputs past the end come out as zero.
template <Type Kind>
void split(const typename Quantized<Kind>::Block* row, int64_t g, int64_t n_cols, RowGroup& out);

// The scales alone, of nested types.
template <Type Kind>
void split_scales(const typename Quantized<Kind>::Block* row, int64_t g, RowGroup& out);

}  // namespace starcoder
