#include "ops/inputs.h"

#include <algorithm>
#include <cstring>

namespace starcoder {

namespace {

int64_t even(int64_t k) { return (k + 1) / 2 * 2; }

// Row i, in groups.
template <class T, class Group>
void lay_out(const T* row, int64_t k, int64_t i, Group* groups, int64_t n) {
    const GroupMajor<Group> to{groups, n};
    for (int64_t at = 0; at < k; at += kGroup)
        std::memcpy(to.at(at / kGroup, i)->x, row + at,
                    static_cast<size_t>(std::min<int64_t>(kGroup, k - at)) * sizeof(T));
}

// To bf16; without an instruction for pairs as floats, of each pair the second first.
void round_row(const float* x, int64_t k, int64_t i, const InputMemory& to) {
    uint16_t* rounded = scratch<uint16_t>(static_cast<size_t>(even(k)), 0);
    isa().round_bf16(x, k, rounded);
    if (k % 2) rounded[k] = 0;
    if (to.bf16) return lay_out(rounded, even(k), i, to.bf16, to.n);
    float* swapped = scratch<float>(static_cast<size_t>(even(k)), 1);
    for (int64_t j = 0; j < even(k); ++j) swapped[j] = bf16_to_float(rounded[j ^ 1]);
    lay_out(swapped, even(k), i, to.floats, to.n);
}

}  // namespace

WeightTraits weight_traits(Type type) {
    return visit<Quantized>(type, [](auto kind) -> WeightTraits {
        using P = typename decltype(kind)::Panel;
        const bool is_signed = isa().signed_bytes && (P::Bits == 8 || P::Codebook);
        if (P::Int16) return {P::Middle, P::Subs, P::Min, true};
        return {P::Min || is_signed ? 0 : P::Zero, P::Subs, P::Min, false};
    });
}

InputMemory::InputMemory(Cutter& cutter, const PackedMatrix& w, int64_t n_tokens)
    : quantized(nullptr), floats(nullptr), bf16(nullptr), n(n_tokens) {
    const int64_t len = n * w.n_groups;
    if (!is_float(w.type))
        quantized = cutter.take<ActivationGroup>(len);
    else if (w.type == Type::BF16 && isa().gemm_bf16)
        bf16 = cutter.take<Bf16Group>(len);
    else
        floats = cutter.take<FloatGroup>(len);
}

void normalize(const Norm& norm, const float* x, int64_t k, float* y) {
    if (norm.bias)
        isa().layer_norm(x, norm.weight, norm.bias, norm.eps, k, y);
    else
        isa().rms_norm(x, norm.weight, norm.eps, k, y);
}

void prepare_rows(const PackedMatrix& w, const Input& x, Pieces::Range rows,
                  const InputMemory& to) {
    const int64_t k = w.n_cols, row_bytes = k * int64_t{sizeof(float)};
    const bool quantizes = !is_float(w.type);
    const WeightTraits weights = quantizes ? weight_traits(w.type) : WeightTraits{};
    float* normalized = x.norm ? scratch<float>(static_cast<size_t>(k), 0) : nullptr;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
        const float* row = x.floats + i * k;
        if (i + 1 < rows.end) prefetch(reinterpret_cast<const uint8_t*>(row + k), row_bytes);
        if (x.norm) {
            normalize(*x.norm, row, k, normalized);
            row = normalized;
        }
        if (quantizes)
            isa().quantize_activations(row, k, weights, to.quantized + i, to.n);
        else if (w.type == Type::BF16)
            round_row(row, k, i, to);
        else
            lay_out(row, k, i, to.floats, to.n);
    }
}

ProductInputs prepare_alone(const PackedMatrix& w, const Input& x, int64_t n) {
    Cutter measure(nullptr);
    InputMemory(measure, w, n);
    Cutter cutter(cache_lines(measure.used(), 0));
    const InputMemory to(cutter, w, n);
    prepare_rows(w, x, {0, n}, to);
    return to;
}

}  // namespace starcoder
