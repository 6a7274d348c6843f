// What is multiplied, made ready: activations rounded to 8 bits, codes and scales read from panels,
// panels spread out to strips. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// ---- activations in 8 bits ----

// One group: x (128) -> q and its scale, and the sums of q over each of `Subs` parts; `Paired`:
// four of two parts in turn. Not-a-numbers and infinities make the scale NaN, so that they stay
// visible in the result.
template <int Subs, bool Paired>
void quantize_group(const float* x, Rounded* out, int32_t* sums) {
    constexpr int kSub = kGroup / Subs, kAtOnce = Paired ? 2 : 1;
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
            if constexpr (Paired)
                store_in_turn(out->q + s * kSub + i / 4 * 8 + i % 4, q[0], q[1]);
            else
                store_bytes(out->q + s * kSub + i, q[0]);
        }
        EACH (p, kAtOnce) sums[s + p] = sum_lanes(sum[p]);
    }
    out->scale = top / 127.0f;
}

void quantize_row(const float* x, int64_t k, Coding coding, Rounded* out, int64_t stride) {
    for (int64_t first = 0; first < k; first += kGroup, out += stride) {
        const int64_t n = k - first < kGroup ? k - first : kGroup;
        alignas(64) float padded[kGroup];
        const float* group = x + first;
        if (n < kGroup) {
            for (int i = 0; i < kGroup; ++i) padded[i] = i < n ? group[i] : 0.0f;
            group = padded;
        }
        int32_t sums[8] = {};
        const auto quantize =
            coding.subs == 4 ? coding.whole ? quantize_group<4, true> : quantize_group<4, false>
            : coding.whole   ? quantize_group<8, true>
                             : quantize_group<8, false>;
        quantize(group, out, sums);
        for (int s = 0; s < coding.subs; ++s) {
            if (coding.min && !coding.whole)
                out->sum[s] = static_cast<float>(sums[s]);
            else
                out->start[s] = -coding.zero * sums[s];
            if (coding.whole && s % 2) out->pair_sum[s / 2] = words(sums[s], sums[s - 1]);
        }
    }
}

// ---- panels -> strips ----

// Codes of lanes i / 4 .. of vectors J and J + 4 of block b, for J < 4.
template <class P, int J>
void read_codes(const P& panel, int b, int i, B& low, B& high) {
    if constexpr (P::Bits == 8) {
        low = load_bytes(panel.blocks[b].byte[J][0] + i);
        high = load_bytes(panel.blocks[b].byte[J][1] + i);
        if constexpr (kSignedBytes) low = flip_signs(low), high = flip_signs(high);
    } else {
        const B nibbles = load_bytes(panel.blocks[b].nibble[J] + i);
        low = low_nibbles(nibbles);
        high = high_nibbles(nibbles);
    }
    if constexpr (P::Codebook) low = lookup(low), high = lookup(high);
    if constexpr (P::Bits == 5) {
        const B bits = load_bytes(panel.blocks[b].high[0] + i);
        low = either(low, to_bit_4<J, 0x10>(bits));
        high = either(high, to_bit_4<J + 4, 0x10>(bits));
    }
    if constexpr (P::Bits == 6) {
        low = either(low, to_bit_4<2 * J, 0x30>(load_bytes(panel.blocks[b].high[0] + i)));
        high = either(high, to_bit_4<2 * J, 0x30>(load_bytes(panel.blocks[b].high[1] + i)));
    }
}

// Scales of rows r .. r + W in sub s, and minima (added, not subtracted).
template <class P>
F read_scale(const P& panel, int s, int r) {
    if constexpr (P::Nested)
        return mul(load_half(panel.scales.d + r), to_float(load_int8(panel.scales.sc[s] + r)));
    else
        return load_half(panel.scales.scale[s] + r);
}
template <class P>
F read_min(const P& panel, int s, int r) {
    if constexpr (!P::Min)
        return set(0.0f);
    else if constexpr (P::Nested)
        return sub(set(0.0f), mul(load_half(panel.scales.dmin + r),
                                  to_float(load_int8(panel.scales.m[s] + r))));
    else
        return load_half(panel.scales.min[s] + r);
}

// Whole scales and minima of rows r .. r + W: of two subs in a lane, the second in the high word.
template <class P>
[[gnu::always_inline]] inline void read_whole(const P& panel, int p, int r, I& scales, I& minima) {
    if constexpr (!P::Nested) {
        scales = load_words(panel.scales.scale[p][r]);
        if constexpr (P::Min) minima = load_words(panel.scales.min[p][r]);
    } else {
        F scale[2], min[2];
        EACH (s, 2) {
            scale[s] = read_scale(panel, 2 * p + s, r);
            min[s] = fma(scale[s], set(P::Middle), read_min(panel, 2 * p + s, r));
        }
        scales = pair_words(round(scale[1]), round(scale[0]));
        if constexpr (P::Min) minima = pair_words(round(min[1]), round(min[0]));
    }
}

template <class P, int J>
void unpack_vectors(const P& panel, int b, int half, Strip& strip) {
    for (int i = 0; i < 64; i += 4 * W) {
        B low, high;
        read_codes<P, J>(panel, b, i, low, high);
        store_codes(strip.code[8 * b + J] + 64 * half + i, low);
        store_codes(strip.code[8 * b + J + 4] + 64 * half + i, high);
    }
}

// Nibble vectors 2 k and 2 k + 1 of a panel with whole scales.
template <class P>
const uint8_t* paired_nibbles(const P& panel, int k) {
    return reinterpret_cast<const uint8_t*>(panel.blocks) + 2 * 64 * k;
}

template <class P>
void unpack_paired(const P& panel, int half, Strip& strip) {
    for (int k = 0; k < kBlocks * 2; ++k) {
        const int low = k / (P::Steps / 2) * P::Steps + k % (P::Steps / 2);
        for (int i = 0; i < 2 * 64; i += 4 * W) {
            const B nibbles = load_bytes(paired_nibbles(panel, k) + i);
            store_codes(strip.code[2 * low + half] + i, low_nibbles(nibbles));
            store_codes(strip.code[2 * low + P::Steps + half] + i, high_nibbles(nibbles));
        }
    }
}

template <class P>
void unpack_panel(const uint8_t* group, int half, Strip& strip) {
    const P& panel = *reinterpret_cast<const P*>(group);
    if constexpr (P::Whole) unpack_paired(panel, half, strip);
    for (int b = 0; !P::Whole && b < kBlocks; ++b) {
        unpack_vectors<P, 0>(panel, b, half, strip);
        unpack_vectors<P, 1>(panel, b, half, strip);
        unpack_vectors<P, 2>(panel, b, half, strip);
        unpack_vectors<P, 3>(panel, b, half, strip);
    }
    for (int r = 0, at = kRows * half; r < kRows; r += W, at += W)
        if constexpr (P::Whole) {
            for (int p = 0; p < P::Subs / 2; ++p) {
                I scales, minima;
                read_whole(panel, p, r, scales, minima);
                store_int(strip.whole_scale[p] + at, scales);
                if (P::Min) store_int(strip.whole_min[p] + at, minima);
            }
        } else {
            for (int s = 0; s < P::Subs; ++s) {
                store(strip.scale[s] + at, read_scale(panel, s, r));
                if (P::Min) store(strip.min[s] + at, read_min(panel, s, r));
            }
        }
}

void unpack(Type type, const uint8_t* group, int half, Strip& strip) {
    switch (type) {
        case Type::Q4_0: return unpack_panel<PanelQ4_0>(group, half, strip);
        case Type::Q4_1: return unpack_panel<PanelQ4_1>(group, half, strip);
        case Type::Q5_0: return unpack_panel<PanelQ5_0>(group, half, strip);
        case Type::Q5_1: return unpack_panel<PanelQ5_1>(group, half, strip);
        case Type::Q2_K: return unpack_panel<PanelQ2_K>(group, half, strip);
        case Type::Q3_K: return unpack_panel<PanelQ3_K>(group, half, strip);
        case Type::Q4_K: return unpack_panel<PanelQ4_K>(group, half, strip);
        case Type::Q5_K: return unpack_panel<PanelQ5_K>(group, half, strip);
        case Type::Q6_K: return unpack_panel<PanelQ6_K>(group, half, strip);
        case Type::IQ4_NL: return unpack_panel<PanelIQ4_NL>(group, half, strip);
        default: return unpack_panel<PanelQ8_0>(group, half, strip);
    }
}

}  // namespace
}  // namespace starcoder
