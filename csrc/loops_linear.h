// Matrix products: activations to 8 bits, panels to strips, dot products, and what is done with the
// sums. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// ---- activations in 8 bits ----

// One group: x (128) -> q, returns the scale. Not-a-numbers and infinities make the scale NaN, so
// that they stay visible in the result.
float quantize_group(const float* x, int8_t* q) {
    I largest = set_int(0);  // of the magnitudes' bits, which order like the magnitudes
    for (int i = 0; i < kGroup; i += W) largest = max_int(largest, magnitude_bits(load(x + i)));
    alignas(64) int32_t lanes[W];
    store_int(lanes, largest);
    int32_t bits = 0;
    for (int i = 0; i < W; ++i) bits = lanes[i] > bits ? lanes[i] : bits;
    const float top = __builtin_bit_cast(float, bits);
    if (bits >= 0x7f800000 || top < 1e-30f) {  // not finite, or nothing
        for (int i = 0; i < kGroup; ++i) q[i] = 0;
        return bits >= 0x7f800000 ? __builtin_nanf("") : 0.0f;
    }
    const F inverse = set(127.0f / top);
    for (int i = 0; i < kGroup; i += W) store_bytes(q + i, round(mul(load(x + i), inverse)));
    return top / 127.0f;
}

void quantize_row(const float* x, int64_t k, int zero, int subs, const Quantized& out, int64_t r) {
    const int sub_len = kGroup / subs;
    for (int64_t g = 0; g < out.groups; ++g) {
        const int64_t first = g * kGroup, n = k - first < kGroup ? k - first : kGroup;
        int8_t* q = out.q + (r * out.groups + g) * kGroup;
        alignas(64) float padded[kGroup];
        const float* group = x + first;
        if (n < kGroup) {
            for (int i = 0; i < kGroup; ++i) padded[i] = i < n ? group[i] : 0.0f;
            group = padded;
        }
        out.scale[r * out.groups + g] = quantize_group(group, q);
        for (int s = 0; s < subs; ++s) {
            int32_t sum = 0;
            for (int i = 0; i < sub_len; ++i) sum += q[s * sub_len + i];
            out.start[(r * out.groups + g) * 8 + s] = -zero * sum;
            out.sum[(r * out.groups + g) * 8 + s] = static_cast<float>(sum);
        }
    }
}

// ---- panels -> strips ----

// Plain byte loops: the compiler makes full vectors of them.
template <class P>
void unpack_codes(const P& panel, int half, Strip& strip) {
    for (int b = 0; b < kBlocks; ++b)
        for (int j = 0; j < 4; ++j) {
            uint8_t* low = strip.code[8 * b + j] + 64 * half;
            uint8_t* high = strip.code[8 * b + j + 4] + 64 * half;
            if constexpr (P::Bits == 8) {
                const uint8_t flip = kSignedBytes ? 0x80 : 0;
                for (int i = 0; i < 64; ++i) {
                    low[i] = panel.codes.byte[b][j][i] ^ flip;
                    high[i] = panel.codes.byte[b][j + 4][i] ^ flip;
                }
            } else if constexpr (P::Codebook) {
                for (int i = 0; i < 64; i += 4 * W) {
                    const B nibbles = load_bytes(panel.codes.nibble[b][j] + i);
                    store_codes(low + i, lookup(low_nibbles(nibbles)));
                    store_codes(high + i, lookup(high_nibbles(nibbles)));
                }
            } else {
                const uint8_t* nibbles = panel.codes.nibble[b][j];
                for (int i = 0; i < 64; ++i) {
                    low[i] = nibbles[i] & 15;
                    high[i] = nibbles[i] >> 4;
                }
            }
            if constexpr (P::Bits == 5) {
                const uint8_t* bits = panel.codes.high[b][0];
                for (int i = 0; i < 64; ++i) {
                    low[i] |= static_cast<uint8_t>(((bits[i] >> j) & 1) << 4);
                    high[i] |= static_cast<uint8_t>(((bits[i] >> (j + 4)) & 1) << 4);
                }
            }
            if constexpr (P::Bits == 6) {
                for (int i = 0; i < 64; ++i) {
                    low[i] |= static_cast<uint8_t>(((panel.codes.high[b][0][i] >> 2 * j) & 3) << 4);
                    high[i] |=
                        static_cast<uint8_t>(((panel.codes.high[b][1][i] >> 2 * j) & 3) << 4);
                }
            }
        }
}

template <class P>
void unpack_scales(const P& panel, int half, Strip& strip) {
    for (int s = 0; s < P::Subs; ++s)
        for (int i = 0; i < kRows; i += W) {
            float* scale = strip.scale[s] + kRows * half + i;
            float* least = strip.min[s] + kRows * half + i;
            if constexpr (P::Nested) {
                const F d = load_half(panel.scales.d + i);
                store(scale, mul(d, to_float(load_int8(panel.scales.sc[s] + i))));
                if constexpr (P::Min) {
                    const F m = to_float(load_int8(panel.scales.m[s] + i));
                    store(least, sub(set(0.0f), mul(load_half(panel.scales.dmin + i), m)));
                }
            } else {
                store(scale, load_half(panel.scales.scale[s] + i));
                if constexpr (P::Min) store(least, load_half(panel.scales.min[s] + i));
            }
        }
}

template <class P>
void unpack_panel(const uint8_t* group, int half, Strip& strip) {
    const P& panel = *reinterpret_cast<const P*>(group);
    unpack_codes(panel, half, strip);
    unpack_scales(panel, half, strip);
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

void unpack_floats(Type type, const uint8_t* panel, int64_t k, int half, float* strip) {
    strip += kRows * half;
    const auto* halves = reinterpret_cast<const uint16_t*>(panel);
    for (int64_t i = 0; i < k; ++i, strip += kStripRow)
        for (int v = 0; v < kRows; v += W) {
            if (type == Type::F32)
                store(strip + v, load(reinterpret_cast<const float*>(panel) + i * kRows + v));
            else if (type == Type::F16)
                store(strip + v, load_half(halves + i * kRows + v));
            else  // pairs of inputs side by side
                store(strip + v, load_bf16(halves + i / 2 * 2 * kRows + 2 * v, i % 2));
        }
}

// ---- dot products ----

// P vectors of rows times T tokens. For each sub: an exact integer dot product, then one fused
// multiply-add by the weights' scale; for each group one by the activations' scale.
template <int P, int T, int Subs, bool Min, bool Bytes>
void dot_tile(const Strip* strips, int64_t n_strips, int v, const Quantized& x, int64_t row,
              int64_t g, float* acc) {
    constexpr int kSteps = kBlocks * 8 / Subs;  // vectors of 4 inputs in a sub
    for (int64_t s = 0; s < n_strips; ++s, ++g) {
        const Strip& strip = strips[s];
        const int8_t* q[T];
        F inner[P][T];
        EACH (t, T) {
            q[t] = x.q + ((row + t) * x.groups + g) * kGroup;
            EACH (p, P) inner[p][t] = set(0.0f);
        }
        for (int sub = 0; sub < Subs; ++sub) {
            I dot[P][T];
            EACH (t, T) {
                const int64_t at = ((row + t) * x.groups + g) * 8 + sub;
                EACH (p, P) dot[p][t] = set_int(Min ? 0 : x.start[at]);
            }
            EACH (j, kSteps) {
                B w[P];
                EACH (p, P) w[p] = load_bytes(strip.code[kSteps * sub + j] + 4 * W * (v + p));
                EACH (t, T) {
                    const B a = set_four(q[t] + 4 * (kSteps * sub + j));
                    EACH (p, P) dot[p][t] = dot4<Bytes>(dot[p][t], w[p], a);
                }
            }
            EACH (p, P) {
                const F scale = load(strip.scale[sub] + W * (v + p));
                EACH (t, T) inner[p][t] = fma(to_float(dot[p][t]), scale, inner[p][t]);
                if constexpr (Min) {
                    const F least = load(strip.min[sub] + W * (v + p));
                    EACH (t, T) {
                        const int64_t at = ((row + t) * x.groups + g) * 8 + sub;
                        inner[p][t] = fma(least, set(x.sum[at]), inner[p][t]);
                    }
                }
            }
        }
        EACH (t, T) {
            const F scale = set(x.scale[(row + t) * x.groups + g]);
            EACH (p, P) {
                float* to = acc + t * kStripRow + W * (v + p);
                store(to, fma(inner[p][t], scale, load(to)));
            }
        }
    }
}

// Tiles of kTileTokens tokens, then one of what is left.
template <int P, int T, int Subs, bool Min, bool Bytes>
void dot_tiles(const Strip* strips, int64_t n_strips, int v, const Quantized& x, int64_t row,
               int64_t n, int64_t g, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T)
        dot_tile<P, T, Subs, Min, Bytes>(strips, n_strips, v, x, row + t, g, acc + t * kStripRow);
    if constexpr (T > 1)
        if (t < n)
            dot_tiles<P, T - 1, Subs, Min, Bytes>(strips, n_strips, v, x, row + t, n - t, g,
                                                  acc + t * kStripRow);
}

template <class Panel>
void dot_panels(const Strip* strips, int64_t n_strips, int rows, const Quantized& x, int64_t row,
                int64_t n, int64_t g, float* acc) {
    constexpr bool Bytes = Panel::Bits == 8 || Panel::Codebook;
    constexpr int P = kTileVectors;
    int v = 0;
    for (; v + P <= rows / W; v += P)
        dot_tiles<P, kTileTokens, Panel::Subs, Panel::Min, Bytes>(strips, n_strips, v, x, row, n, g,
                                                                  acc);
    for (; v < rows / W; ++v)
        dot_tiles<1, kTileTokens, Panel::Subs, Panel::Min, Bytes>(strips, n_strips, v, x, row, n, g,
                                                                  acc);
}

// What a dot product needs to know of a type are its subs, minima and bytes: five kinds.
void dot(Type type, const Strip* strips, int64_t n_strips, int rows, const Quantized& x,
         int64_t row, int64_t n, int64_t g, float* acc) {
    const auto run = [&](auto panel) {
        dot_panels<decltype(panel)>(strips, n_strips, rows, x, row, n, g, acc);
    };
    switch (type) {
        case Type::Q4_0:
        case Type::Q5_0: return run(PanelQ4_0());
        case Type::Q4_1:
        case Type::Q5_1:
        case Type::Q4_K:
        case Type::Q5_K: return run(PanelQ4_1());
        case Type::Q2_K: return run(PanelQ2_K());
        case Type::Q3_K:
        case Type::Q6_K: return run(PanelQ6_K());
        default: return run(PanelQ8_0());
    }
}

template <int P, int T>
void float_tile(const float* strip, int64_t k, int v, const float* x, int64_t stride, float* acc) {
    F sum[P][T];
    EACH (t, T)
        EACH (p, P) sum[p][t] = set(0.0f);
    for (int64_t i = 0; i < k; ++i) {
        F w[P];
        EACH (p, P) w[p] = load(strip + i * kStripRow + W * (v + p));
        EACH (t, T) {
            const F a = set(x[t * stride + i]);
            EACH (p, P) sum[p][t] = fma(w[p], a, sum[p][t]);
        }
    }
    EACH (t, T)
        EACH (p, P) {
            float* to = acc + t * kStripRow + W * (v + p);
            store(to, add(load(to), sum[p][t]));
        }
}

template <int P, int T>
void float_tiles(const float* strip, int64_t k, int v, const float* x, int64_t stride, int64_t n,
                 float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T)
        float_tile<P, T>(strip, k, v, x + t * stride, stride, acc + t * kStripRow);
    if constexpr (T > 1)
        if (t < n)
            float_tiles<P, T - 1>(strip, k, v, x + t * stride, stride, n - t, acc + t * kStripRow);
}

void dot_floats(const float* strip, int64_t k, int rows, const float* x, int64_t stride, int64_t n,
                float* acc) {
    int v = 0;
    for (; v + kTileVectors <= rows / W; v += kTileVectors)
        float_tiles<kTileVectors, kFloatTileTokens>(strip, k, v, x, stride, n, acc);
    for (; v < rows / W; ++v) float_tiles<1, kFloatTileTokens>(strip, k, v, x, stride, n, acc);
}

// ---- sums -> results ----

void finish(const float* acc, int64_t n, int valid, const float* bias, Activation activation,
            const float* residual, float* y, int64_t stride) {
    const auto value = [&](const float* sum, const float* b, const float* r) {
        F v = load(sum);
        if (bias) v = add(v, load(b));
        v = activate(v, activation);
        return residual ? add(v, load(r)) : v;
    };
    for (int64_t t = 0; t < n; ++t) {
        const float* row = acc + t * kStripRow;
        int i = 0;
        for (; i + W <= valid; i += W)
            store(y + t * stride + i, value(row + i, bias + i, residual + t * stride + i));
        if (i == valid) continue;
        alignas(64) float b[W] = {}, r[W] = {}, out[W];
        for (int j = i; j < valid; ++j) {
            if (bias) b[j - i] = bias[j];
            if (residual) r[j - i] = residual[t * stride + j];
        }
        store(out, value(row + i, b, r));
        for (int j = i; j < valid; ++j) y[t * stride + j] = out[j - i];
    }
}

}  // namespace
}  // namespace starcoder
