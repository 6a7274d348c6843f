// Matrix products: activations to 8 bits, panels to strips, dot products, and what is done with the
// sums. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// ---- activations in 8 bits ----

// One group: x (128) -> q and its scale, and the sums of q over each of `Subs` parts. Not-a-numbers
// and infinities make the scale NaN, so that they stay visible in the result.
template <int Subs>
void quantize_group(const float* x, Rounded* out, int32_t* sums) {
    constexpr int kSub = kGroup / Subs;
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
    alignas(64) int32_t lanes[Subs][W];
    for (int s = 0; s < Subs; ++s) {
        I sum = set_int(0);
        for (int i = s * kSub; i < (s + 1) * kSub; i += W) {
            const I q = round(mul(load(x + i), inverse));
            store_bytes(out->q + i, q);
            sum = add_int(sum, q);
        }
        store_int(lanes[s], sum);
    }
    for (int s = 0; s < Subs; ++s) {
        sums[s] = 0;
        for (const int32_t lane : lanes[s]) sums[s] += lane;
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
        if (coding.subs == 4)
            quantize_group<4>(group, out, sums);
        else
            quantize_group<8>(group, out, sums);
        for (int s = 0; s < coding.subs; ++s) {
            if (coding.min)
                out->sum[s] = static_cast<float>(sums[s]);
            else
                out->start[s] = -coding.zero * sums[s];
        }
    }
}

// ---- panels -> strips ----

// Codes of lanes i / 4 .. of vectors J and J + 4 of block b, for J < 4.
template <class P, int J>
void read_codes(const P& panel, int b, int i, B& low, B& high) {
    if constexpr (P::Bits == 8) {
        low = load_bytes(panel.codes.byte[b][J] + i);
        high = load_bytes(panel.codes.byte[b][J + 4] + i);
        if constexpr (kSignedBytes) low = flip_signs(low), high = flip_signs(high);
    } else {
        const B nibbles = load_bytes(panel.codes.nibble[b][J] + i);
        low = low_nibbles(nibbles);
        high = high_nibbles(nibbles);
    }
    if constexpr (P::Codebook) low = lookup(low), high = lookup(high);
    if constexpr (P::Bits == 5) {
        const B bits = load_bytes(panel.codes.high[b][0] + i);
        low = either(low, to_bit_4<J, 0x10>(bits));
        high = either(high, to_bit_4<J + 4, 0x10>(bits));
    }
    if constexpr (P::Bits == 6) {
        low = either(low, to_bit_4<2 * J, 0x30>(load_bytes(panel.codes.high[b][0] + i)));
        high = either(high, to_bit_4<2 * J, 0x30>(load_bytes(panel.codes.high[b][1] + i)));
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

template <class P, int J>
void unpack_vectors(const P& panel, int b, int half, Strip& strip) {
    for (int i = 0; i < 64; i += 4 * W) {
        B low, high;
        read_codes<P, J>(panel, b, i, low, high);
        store_codes(strip.code[8 * b + J] + 64 * half + i, low);
        store_codes(strip.code[8 * b + J + 4] + 64 * half + i, high);
    }
}

template <class P>
void unpack_panel(const uint8_t* group, int half, Strip& strip) {
    const P& panel = *reinterpret_cast<const P*>(group);
    for (int b = 0; b < kBlocks; ++b) {
        unpack_vectors<P, 0>(panel, b, half, strip);
        unpack_vectors<P, 1>(panel, b, half, strip);
        unpack_vectors<P, 2>(panel, b, half, strip);
        unpack_vectors<P, 3>(panel, b, half, strip);
    }
    for (int s = 0; s < P::Subs; ++s)
        for (int r = 0; r < kRows; r += W) {
            store(strip.scale[s] + kRows * half + r, read_scale(panel, s, r));
            if (P::Min) store(strip.min[s] + kRows * half + r, read_min(panel, s, r));
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

// Rows r .. r + W of input i of a panel of floats. BF16 has pairs of inputs side by side; of each
// the second comes first.
template <Type Kind>
F read_floats(const uint8_t* panel, int64_t i, int r) {
    const auto* halves = reinterpret_cast<const uint16_t*>(panel);
    if constexpr (Kind == Type::F32)
        return load(reinterpret_cast<const float*>(panel) + i * kRows + r);
    else if constexpr (Kind == Type::F16)
        return load_half(halves + i * kRows + r);
    else
        return load_bf16(halves + i / 2 * 2 * kRows + 2 * r, i % 2 == 0);
}

template <Type Kind>
void unpack_panel_floats(const uint8_t* panel, int64_t k, int half, float* strip) {
    for (int64_t i = 0; i < k; ++i)
        for (int r = 0; r < kRows; r += W)
            store(strip + i * kStripRow + kRows * half + r, read_floats<Kind>(panel, i, r));
}

void unpack_floats(Type type, const uint8_t* panel, int64_t k, int half, float* strip) {
    switch (type) {
        case Type::F32: return unpack_panel_floats<Type::F32>(panel, k, half, strip);
        case Type::F16: return unpack_panel_floats<Type::F16>(panel, k, half, strip);
        default: return unpack_panel_floats<Type::BF16>(panel, k, half, strip);
    }
}

// ---- dot products ----

// Bits of a type's codes as they are multiplied.
template <class P>
constexpr int kCodeBits = P::Codebook ? 8 : P::Bits;

// P vectors of rows times T tokens. For each sub: an exact integer dot product, then one fused
// multiply-add by the weights' scale; for each group one by the activations' scale.
template <int P, int T, int Subs, bool Min, int Bits>
void dot_tile(const Strip* strips, int64_t n_strips, int v, const Rounded* x, int64_t stride,
              float* acc) {
    constexpr int kSteps = kBlocks * 8 / Subs;  // vectors of 4 inputs in a sub
    constexpr int N = at_once(Bits);
    for (int64_t s = 0; s < n_strips; ++s, x += stride) {
        const Strip& strip = strips[s];
        F inner[P][T];
        EACH (t, T)
            EACH (p, P) inner[p][t] = set(0.0f);
        EACH (sub, Subs) {
            I dot[P][T];
            EACH (t, T)
                EACH (p, P) dot[p][t] = set_int(Min ? 0 : x[t].start[sub]);
            EACH (j, kSteps / N) {
                const int first = kSteps * sub + N * j;
                B w[P][N], q[N];
                EACH (p, P)
                    EACH (n, N) w[p][n] = load_bytes(strip.code[first + n] + 4 * W * (v + p));
                EACH (t, T) {
                    EACH (n, N) q[n] = set_four(x[t].q + 4 * (first + n));
                    EACH (p, P) dot[p][t] = dot4<Bits == 8>(dot[p][t], w[p], q);
                }
            }
            F scale[P];
            EACH (p, P) scale[p] = load(strip.scale[sub] + W * (v + p));
            EACH (t, T)
                EACH (p, P) inner[p][t] = fma(to_float(dot[p][t]), scale[p], inner[p][t]);
            if constexpr (Min) {
                F least[P];
                EACH (p, P) least[p] = load(strip.min[sub] + W * (v + p));
                EACH (t, T) {
                    const F sum = set(x[t].sum[sub]);
                    EACH (p, P) inner[p][t] = fma(least[p], sum, inner[p][t]);
                }
            }
        }
        EACH (t, T) {
            const F scale = set(x[t].scale);
            EACH (p, P) {
                float* to = acc + t * kStripRow + W * (v + p);
                store(to, fma(inner[p][t], scale, load(to)));
            }
        }
        // The compiler would keep the sums of all strips in registers that it does not have, and
        // the tile would reach 0.81 of the peak instead of 0.856 (docs/log.md).
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
}

// Tiles of kTileTokens tokens, then one of what is left.
template <int P, int T, int Subs, bool Min, int Bits>
void dot_tiles(const Strip* strips, int64_t n_strips, int v, const Rounded* x, int64_t stride,
               int64_t n, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T)
        dot_tile<P, T, Subs, Min, Bits>(strips, n_strips, v, x + t, stride, acc + t * kStripRow);
    if constexpr (T > 1)
        if (t < n)
            dot_tiles<P, T - 1, Subs, Min, Bits>(strips, n_strips, v, x + t, stride, n - t,
                                                 acc + t * kStripRow);
}

template <class Panel>
void dot_panels(const Strip* strips, int64_t n_strips, const Rounded* x, int64_t stride, int64_t n,
                float* acc) {
    constexpr int P = kTileVectors, T = kTileTokens, Bits = kCodeBits<Panel>;
    for (int v = 0; v < kStripRow / W; v += P)
        dot_tiles<P, T, Panel::Subs, Panel::Min, Bits>(strips, n_strips, v, x, stride, n, acc);
}

// What a dot product needs to know of a type are its subs, minima and whether its codes have at
// most 5, 6 or 8 bits: five kinds.
static_assert(at_once(4) == at_once(5));
void dot(Type type, const Strip* strips, int64_t n_strips, const Rounded* x, int64_t stride,
         int64_t n, float* acc) {
    const auto run = [&](auto panel) {
        dot_panels<decltype(panel)>(strips, n_strips, x, stride, n, acc);
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

// ---- dot products straight from a panel, for few tokens ----

// Vectors J .. 3 and J + 4 .. 7 of block b times the activations of T tokens.
template <class P, int T, int J = 0>
[[gnu::always_inline]] inline void dot_vectors(const P& panel, int b, int i, const Rounded* x,
                                               I* low, I* high) {
    constexpr int N = at_once(kCodeBits<P>);
    constexpr bool Bytes = kCodeBits<P> == 8;
    B low_codes[N], high_codes[N], q[N];
    [&]<int... n>(std::integer_sequence<int, n...>) {
        (read_codes<P, J + n>(panel, b, i, low_codes[n], high_codes[n]), ...);
    }(std::make_integer_sequence<int, N>());
    EACH (t, T) {
        const int8_t* first = x[t].q + 32 * b + 4 * J;
        EACH (n, N) q[n] = set_four(first + 4 * n);
        low[t] = dot4<Bytes>(low[t], low_codes, q);
        EACH (n, N) q[n] = set_four(first + 4 * n + 16);
        high[t] = dot4<Bytes>(high[t], high_codes, q);
    }
    if constexpr (J + N < 4) dot_vectors<P, T, J + N>(panel, b, i, x, low, high);
}

// Asks for a quarter of a panel further on, for T tokens. Spread out like this, the requests of one
// quarter are answered while the next is multiplied.
template <class P, int T>
void prefetch_quarter(const P& panel, int b) {
    constexpr size_t kLines = sizeof(P) / 64;
    const auto* lines = reinterpret_cast<const uint8_t*>(&panel);
    for (size_t i = kLines * b / kBlocks; i < kLines * (b + 1) / kBlocks; ++i)
        if constexpr (T <= 2)
            prefetch_near(lines + 64 * i);
        else
            prefetch_far(lines + 64 * i);
}

// Rows r .. r + W of one group: the same operations as in dot_tile, without a strip in between.
template <class P, int T>
void dot_rows(const P& panel, int r, const Rounded* x, float* acc) {
    F inner[T];
    EACH (t, T) inner[t] = set(0.0f);
    const auto add_sub = [&](int s, const I* dot) {
        const F scale = read_scale(panel, s, r), least = read_min(panel, s, r);
        EACH (t, T) {
            inner[t] = fma(to_float(dot[t]), scale, inner[t]);
            if (P::Min) inner[t] = fma(least, set(x[t].sum[s]), inner[t]);
        }
    };
    for (int b = 0; b < kBlocks; ++b) {
        constexpr bool Halves = P::Subs == 8;  // low and high nibbles have scales of their own
        const int s = Halves ? 2 * b : b;
        if (r == 0) prefetch_quarter<P, T>(panel, b);
        I low[T], high[T];
        EACH (t, T) {
            low[t] = set_int(P::Min ? 0 : x[t].start[s]);
            high[t] = set_int(P::Min || !Halves ? 0 : x[t].start[s + 1]);
        }
        dot_vectors<P, T>(panel, b, 4 * r, x, low, high);
        if constexpr (!Halves)
            EACH (t, T) low[t] = add_int(low[t], high[t]);
        add_sub(s, low);
        if constexpr (Halves) add_sub(s + 1, high);
    }
    EACH (t, T) {
        float* to = acc + t * kStripRow + r;
        store(to, fma(inner[t], set(x[t].scale), load(to)));
    }
}

template <class P, int T>
void dot_pair(const uint8_t* groups, int64_t n_groups, const Rounded* x, int64_t stride, int64_t n,
              float* acc) {
    if constexpr (T > 1)
        if (n < T) return dot_pair<P, T - 1>(groups, n_groups, x, stride, n, acc);
    for (const Rounded* end = x + n_groups * stride; x < end; x += stride)
        for (int half = 0; half < 2; ++half, groups += sizeof(P)) {
            for (int r = 0; r < kRows; r += W)
                dot_rows<P, T>(*reinterpret_cast<const P*>(groups), r, x, acc + kRows * half);
        }
}

void dot_few(Type type, const uint8_t* groups, int64_t n_groups, const Rounded* x, int64_t stride,
             int64_t n, float* acc) {
    constexpr int T = kFewTokens;
    switch (type) {
        case Type::Q4_0: return dot_pair<PanelQ4_0, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q4_1: return dot_pair<PanelQ4_1, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q5_0: return dot_pair<PanelQ5_0, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q5_1: return dot_pair<PanelQ5_1, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q2_K: return dot_pair<PanelQ2_K, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q3_K: return dot_pair<PanelQ3_K, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q4_K: return dot_pair<PanelQ4_K, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q5_K: return dot_pair<PanelQ5_K, T>(groups, n_groups, x, stride, n, acc);
        case Type::Q6_K: return dot_pair<PanelQ6_K, T>(groups, n_groups, x, stride, n, acc);
        case Type::IQ4_NL: return dot_pair<PanelIQ4_NL, T>(groups, n_groups, x, stride, n, acc);
        default: return dot_pair<PanelQ8_0, T>(groups, n_groups, x, stride, n, acc);
    }
}

// ---- dot products with float weights ----

template <int P, int T>
void float_tile(const float* strip, int64_t k, int v, const float* x, float* acc) {
    F sum[P][T];
    EACH (t, T)
        EACH (p, P) sum[p][t] = set(0.0f);
    for (int64_t i = 0; i < k; ++i) {
        F w[P];
        EACH (p, P) w[p] = load(strip + i * kStripRow + W * (v + p));
        EACH (t, T) {
            const F a = set(x[t * kGroup + i]);
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
void float_tiles(const float* strip, int64_t k, int v, const float* x, int64_t n, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T) float_tile<P, T>(strip, k, v, x + t * kGroup, acc + t * kStripRow);
    if constexpr (T > 1)
        if (t < n) float_tiles<P, T - 1>(strip, k, v, x + t * kGroup, n - t, acc + t * kStripRow);
}

void dot_floats(const float* strip, int64_t k, const float* x, int64_t n, float* acc) {
    for (int v = 0; v < kStripRow / W; v += kTileVectors)
        float_tiles<kTileVectors, kFloatTileTokens>(strip, k, v, x, n, acc);
}

// The same straight from the panels, for few tokens: the same operations as in float_tile.
template <Type Kind, int T>
void float_panels(const uint8_t* const panels[2], int64_t k, const float* x, int64_t n,
                  float* acc) {
    if constexpr (T > 1)
        if (n < T) return float_panels<Kind, T - 1>(panels, k, x, n, acc);
    constexpr int P = kTileVectors, kInputs = Kind == Type::F32 ? 1 : 2;  // of a line
    for (int v = 0; v < kStripRow / W; v += P) {
        F sum[P][T];
        EACH (t, T)
            EACH (p, P) sum[p][t] = set(0.0f);
        for (int64_t i = 0; i < k; ++i) {
            F w[P];
            EACH (p, P) {
                const uint8_t* panel = panels[(v + p) / kVectors];
                const int at = (v + p) % kVectors;
                if (at == 0 && i % kInputs == 0) prefetch_far(panel + i / kInputs * 64);
                w[p] = read_floats<Kind>(panel, i, at * W);
            }
            EACH (t, T) {
                const F a = set(x[t * kGroup + i]);
                EACH (p, P) sum[p][t] = fma(w[p], a, sum[p][t]);
            }
        }
        EACH (t, T)
            EACH (p, P) {
                float* to = acc + t * kStripRow + W * (v + p);
                store(to, add(load(to), sum[p][t]));
            }
    }
}

void dot_few_floats(Type type, const uint8_t* const panels[2], int64_t k, const float* x, int64_t n,
                    float* acc) {
    constexpr int T = kFewTokens;
    switch (type) {
        case Type::F32: return float_panels<Type::F32, T>(panels, k, x, n, acc);
        case Type::F16: return float_panels<Type::F16, T>(panels, k, x, n, acc);
        default: return float_panels<Type::BF16, T>(panels, k, x, n, acc);
    }
}

void round_bf16(const float* x, int64_t k, uint16_t* to) {
    encode_bf16(x, k, to);
    for (int64_t i = 0; i < k; ++i)
        if (const auto bits = __builtin_bit_cast(uint32_t, x[i]); !(bits & 0x7f800000))
            to[i] = bits >> 16 & 0x8000;
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
