// What is done with the sums of a product, and where they go.
#pragma once

#include "kernels.h"
#include "simd/isa.h"
#include "types/packed.h"

namespace starcoder {

// Strips whose sums are written together, a few tokens at a time: rows of results lie pages apart,
// and writing them takes an eighth of the time so. Four strips are also one group of the next
// product's inputs.
inline constexpr int64_t kStripsAtOnce = kGroup / kStripRows;

class Epilogue {
  public:
    Epilogue(const PackedMatrix& w, const float* bias, Activation activation, const float* residual,
             const Output& y, int64_t n);

    // Writes tokens t .. t + n of strips first .. first + count; acc is (count, n, 32).
    void write(int64_t first, int64_t count, int64_t t, int64_t n, const float* acc) const;

    bool quantizes() const { return reader_; }

  private:
    void write_floats(int64_t first, int64_t count, int64_t t, int64_t n, const float* acc) const;
    void write_quantized(int64_t first, int64_t count, int64_t t, int64_t n,
                         const float* acc) const;

    const float* units_;
    const float* bias_;
    const float* residual_;
    float* floats_;
    const PackedMatrix* reader_;  // which takes the results quantized; or null
    GroupMajor<ActivationGroup> quantized_;
    int64_t n_rows_;  // outputs
    Activation activation_;
};

}  // namespace starcoder
