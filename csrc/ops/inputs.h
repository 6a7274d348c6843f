// The inputs of a product, made from rows of floats: normalized, then quantized or rounded, as the
// weights they meet want them.
#pragma once

#include "kernels.h"
#include "simd/isa.h"
#include "sys/schedule.h"
#include "sys/scratch.h"
#include "types/packed.h"

namespace starcoder {

// n tokens, group-major, in one of three forms.
struct ProductInputs {
    const ActivationGroup* quantized;  // for quantized weights
    const FloatGroup* floats;          // F32, F16; BF16 where there is no instruction for it
    const Bf16Group* bf16;
    int64_t n;
};

// Memory for them.
struct InputMemory {
    ActivationGroup* quantized;
    FloatGroup* floats;
    Bf16Group* bf16;
    int64_t n;

    InputMemory(Cutter& cutter, const PackedMatrix& w, int64_t n_tokens);
    operator ProductInputs() const { return {quantized, floats, bf16, n}; }
};

WeightTraits weight_traits(Type type);

// Rows begin .. end of x.
void prepare_rows(const PackedMatrix& w, const Input& x, Pieces::Range rows, const InputMemory& to);

// All n rows, for the calling thread alone.
ProductInputs prepare_alone(const PackedMatrix& w, const Input& x, int64_t n);

// x (k) of one token, normalized.
void normalize(const Norm& norm, const float* x, int64_t k, float* y);

}  // namespace starcoder
