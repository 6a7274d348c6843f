// Strips of weights times many tokens, and products with float weights: beside the plain way of one
// token, which linear.cpp shows.
#pragma once

#include "simd/activations.h"
#include "types/packed.h"

namespace starcoder {

// Tokens that share one unpacking, and the groups of their activations that stay in the
// second-level cache (400 or 540 KB) while several strips pass by.
inline constexpr int64_t kTokenBlock = 264;

// Whether so many tokens are multiplied straight from the panels, some at a time: codes are then
// unpacked in registers each time, while the multipliers are busy. Beyond, an unpacked tile pays.
bool is_gemv(int64_t n);

// acc (count, n, 32) += strips first .. first + count times tokens t .. t + n of x.
void gemm(const PackedMatrix& w, int64_t first, int64_t count, const QuantizedActivations& x,
          int64_t t, int64_t n, float* acc);

// The same with float weights, for few tokens as well.
void gemm(const PackedMatrix& w, int64_t first, int64_t count,
          const GroupMajor<const FloatGroup>& x, int64_t t, int64_t n, float* acc);
void gemm(const PackedMatrix& w, int64_t first, int64_t count, const GroupMajor<const Bf16Group>& x,
          int64_t t, int64_t n, float* acc);

}  // namespace starcoder
