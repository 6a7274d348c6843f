// Floats -> blocks, on all threads. How a block is made is in simd/encode.h.
#pragma once

#include <cstdint>

#include "types/table.h"

namespace starcoder {

// out = blocks of type `to` for the weights (n_rows, n_cols) at `data`, both types in whole blocks
// a row. Threads share the blocks; no block depends on another.
//
// F16, BF16: to nearest, ties to even, NaN stays NaN. Q4_0 ... Q8_0: the bytes of ggml's reference.
// The K types and IQ4_NL: scales and codes searched for the least squared error. A block with a
// weight that is not finite stands for NaN everywhere.
//
// The reference differs by how it was compiled: with `fused`, Q4_0 ... Q5_1 have the codes of a
// build that fuses multiplication and addition, as ggml's own programs do where the machine can.
void requantize(Type from, const void* data, Type to, int64_t n_rows, int64_t n_cols, bool fused,
                void* out);

// The same from floats.
inline void quantize(Type type, const float* x, int64_t n_rows, int64_t n_cols, bool fused,
                     void* out) {
    requantize(Type::F32, x, type, n_rows, n_cols, fused, out);
}

// The place of the first weight that is NaN or infinite, of n in whole blocks; -1 if none is.
int64_t first_non_finite(Type type, const void* data, int64_t n);

}  // namespace starcoder
