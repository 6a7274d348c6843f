#include "ops/epilogue.h"

#include <algorithm>

#include "ops/inputs.h"

namespace starcoder {

namespace {

constexpr int64_t kTokensAtOnce = 8;

const float* from(const float* numbers, int64_t i) { return numbers ? numbers + i : nullptr; }

}  // namespace

Epilogue::Epilogue(const PackedMatrix& w, const float* bias, Activation activation,
                   const float* residual, const Output& y, int64_t n)
    : units_(w.units),
      bias_(bias),
      residual_(residual),
      floats_(y.floats),
      reader_(y.reader ? &y.reader->packed() : nullptr),
      quantized_{y.quantized, n},
      n_rows_(w.n_rows),
      activation_(activation) {}

void Epilogue::write(int64_t first, int64_t count, int64_t t, int64_t n, const float* acc) const {
    if (reader_)
        write_quantized(first, count, t, n, acc);
    else
        write_floats(first, count, t, n, acc);
}

void Epilogue::write_floats(int64_t first, int64_t count, int64_t t, int64_t n,
                            const float* acc) const {
    for (int64_t i = 0; i < n; i += kTokensAtOnce)
        for (int64_t s = 0; s < count; ++s) {
            const int64_t row = (first + s) * kStripRows, at = (t + i) * n_rows_ + row;
            isa().epilogue(acc + (s * n + i) * kStripRows, std::min(kTokensAtOnce, n - i),
                           static_cast<int>(std::min<int64_t>(kStripRows, n_rows_ - row)),
                           from(units_, row), from(bias_, row), activation_, from(residual_, at),
                           floats_ + at, n_rows_);
        }
}

// Each four strips of outputs are a group of the next product's inputs.
void Epilogue::write_quantized(int64_t first, int64_t count, int64_t t, int64_t n,
                               const float* acc) const {
    const WeightTraits weights = weight_traits(reader_->type);
    alignas(64) float rows[kTokensAtOnce][kGroup];
    for (const int64_t end = first + count; first < end; first += kStripsAtOnce) {
        const int64_t row = first * kStripRows, valid = std::min<int64_t>(kGroup, n_rows_ - row);
        for (int64_t i = 0; i < n; i += kTokensAtOnce) {
            const int64_t tokens = std::min(kTokensAtOnce, n - i);
            for (int64_t at = 0; at < valid; at += kStripRows)
                isa().epilogue(acc + at * n + i * kStripRows, tokens,
                               static_cast<int>(std::min<int64_t>(kStripRows, valid - at)),
                               from(units_, row + at), from(bias_, row + at), activation_, nullptr,
                               rows[0] + at, kGroup);
            for (int64_t j = 0; j < tokens; ++j)
                isa().quantize_activations(rows[j], valid, weights,
                                           quantized_.at(first / kStripsAtOnce, t + i + j), 0);
        }
        acc += kGroup * n;
    }
}

}  // namespace starcoder
