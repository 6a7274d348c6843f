// Activations quantized to 8 bits, with one scale for every 128 inputs: part of loops.h.
#pragma once

namespace starcoder {
namespace {

// One group: x (128) -> q and its scale, and the sums of q over each sub-block. `Interleaved`: four
// inputs of one sub-block, then four of the next one. Not-a-numbers and infinities make the scale
// NaN, so that they stay visible in the result.
template <int Subs, bool Interleaved>
void quantize_group(const float* x, ActivationGroup* out, int32_t* sums) {
    constexpr int kSub = kGroup / Subs, kAtOnce = Interleaved ? 2 : 1;
    I largest = set_int(0);  // of the magnitudes' bits, which order like the magnitudes
    for (int i = 0; i < kGroup; i += W) largest = max_int(largest, magnitude_bits(load(x + i)));
    const int32_t bits = max_lane(largest);
    const float top = __builtin_bit_cast(float, bits);
    if (bits >= 0x7f800000 || top < 1e-30f) {  // not finite, or nothing
        for (int8_t& q : out->q) q = 0;
        for (int s = 0; s < Subs; ++s) sums[s] = 0;
        out->scale = bits >= 0x7f800000 ? __builtin_nanf("") : 0.0f;
        return;
    }
    const F inverse = set(127.0f / top);
    for (int s = 0; s < Subs; s += kAtOnce) {
        I sum[kAtOnce];
        EACH (p, kAtOnce) sum[p] = set_int(0);
        for (int i = 0; i < kSub; i += W) {
            I q[kAtOnce];
            EACH (p, kAtOnce) {
                q[p] = round(mul(load(x + (s + p) * kSub + i), inverse));
                sum[p] = add_int(sum[p], q[p]);
            }
            if constexpr (Interleaved)
                store_interleaved(out->q + s * kSub + i / 4 * 8 + i % 4, q[0], q[1]);
            else
                store_bytes(out->q + s * kSub + i, q[0]);
        }
        EACH (p, kAtOnce) sums[s + p] = sum_lanes(sum[p]);
    }
    out->scale = top / 127.0f;
}

void quantize_activations(const float* x, int64_t k, WeightTraits weights, ActivationGroup* out,
                          int64_t stride) {
    const auto quantize = weights.subs == 4
                              ? weights.int16 ? quantize_group<4, true> : quantize_group<4, false>
                          : weights.int16 ? quantize_group<8, true>
                                          : quantize_group<8, false>;
    for (int64_t first = 0; first < k; first += kGroup, out += stride) {
        const int64_t n = k - first < kGroup ? k - first : kGroup;
        alignas(64) float padded[kGroup];
        const float* group = x + first;
        if (n < kGroup) {
            for (int i = 0; i < kGroup; ++i) padded[i] = i < n ? group[i] : 0.0f;
            group = padded;
        }
        int32_t sums[8] = {};
        quantize(group, out, sums);
        for (int s = 0; s < weights.subs; ++s) {
            if (weights.min && !weights.int16)
                out->sum[s] = static_cast<float>(sums[s]);
            else
                out->start[s] = -weights.zero * sums[s];
            if (weights.int16 && s % 2) out->pair_sum[s / 2] = int16_pair(sums[s], sums[s - 1]);
        }
    }
}

}  // namespace
}  // namespace starcoder
