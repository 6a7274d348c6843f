// The inner loops, written once over the vectors that a file of this folder, scalar.cpp or another,
// defines before it includes this file. Everything is in an unnamed namespace, and nothing is
// initialized when the library is loaded: code of these files must not run, nor be shared by the
// linker with files that are compiled for other machines, before the CPU was asked what it has.
// `tests/test_objects.py` reads the objects.
//
// Vectors hold W lanes: F of float, I of int32, B of 4 W bytes. scalar.cpp says in plain C++ what
// each operation on them does.
#pragma once

#include <atomic>
#include <utility>

// EACH(i, N): a loop over registers, which must be unrolled to be one.
#if defined(__clang__)
#define EACH(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < n; ++i)
#else
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < n; ++i)
#endif

namespace starcoder {
namespace {

constexpr int kVectors = kRows / W;  // vectors in the 16 rows of a panel

}  // namespace
}  // namespace starcoder

// In this order, which clang-format must not change: each uses the ones above it.
// clang-format off
#include "simd/math.h"
#include "simd/rows.h"
#include "simd/encode_tile.h"
#include "simd/encode_search.h"
#include "simd/encode_bytes.h"
#include "simd/encode_plain.h"
#include "simd/encode.h"
#include "simd/quantize.h"
#include "simd/codes.h"
#include "simd/gemv_tokens.h"
#include "simd/gemv.h"
#include "simd/unpack.h"
#include "simd/gemm.h"
#include "simd/float_products.h"
#include "simd/epilogue.h"
#include "simd/attention.h"
#include "probe/peak_loops.h"
// clang-format on

namespace starcoder {
namespace {

constexpr Isa kTable = {
    .name = kName,
    .signed_bytes = kSignedBytes,
    .gemv_tokens = kGemvTokens,
    .quantize_activations = quantize_activations,
    .gemv = gemv,
    .unpack = unpack,
    .gemm = gemm,
    .gemv_floats = gemv_floats,
    .unpack_floats = unpack_floats,
    .gemm_floats = gemm_floats,
    .round_bf16 = round_bf16,
    .gemm_bf16 = nullptr,
    .epilogue = epilogue,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .gated = gated,
    .narrow = narrow,
    .scores = scores,
    .softmax = softmax,
    .weighted_values = weighted_values,
    .round_pairs = round_pairs,
    .scores_bf16 = scores_bf16,
    .weighted_values_bf16 = weighted_values_bf16,
    .merge = merge,
    .encode = encode,
    .widen_half = widen_half,
    .int8_peak = int8_peak,
    .bf16_peak = nullptr,
    .f32_peak = f32_peak,
    .read_lines = read_lines,
};

}  // namespace
}  // namespace starcoder
