// The inner loops, written once over the vectors that an isa_*.cpp defines before it includes this
// file. Everything is in an unnamed namespace, and nothing is initialized when the library is
// loaded: code of these files must not run, nor be shared by the linker with files that are
// compiled for other machines, before the CPU was asked what it has. `tests/test_objects.py` reads
// the objects.
//
// Vectors hold W lanes: F of float, I of int32, B of 4 W bytes. See isa_scalar.cpp for the words.
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

#include "simd/math.h"
//
#include "simd/encode.h"
//
#include "probe/peak_loops.h"
//
#include "simd/unpack.h"
//
#include "simd/gemm.h"
//
#include "simd/gemm_floats.h"
//
#include "simd/attention.h"

namespace starcoder {
namespace {

constexpr Isa kTable = {
    kName,   kSignedBytes, kFewTokens,     quantize_row, unpack,      unpack_floats, dot,
    dot_few, dot_floats,   dot_few_floats, round_bf16,   nullptr,     finish,        layer_norm,
    narrow,  scores,       softmax,        mix,          round_pairs, score_pairs,   mix_pairs,
    merge,   encode,       widen_half,     int8_peak,    nullptr,     f32_peak,      read_lines,
};

}  // namespace
}  // namespace starcoder
