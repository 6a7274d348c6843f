// Matrix products with quantized weights: tiles of strips, tiles straight from panels, and what is
// done with the sums. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// ---- dot products ----

// Bits of a type's codes as they are multiplied.
template <class P>
constexpr int kCodeBits = P::Codebook ? 8 : P::Bits;

// dot += `Steps` vectors of codes from `first` on, times T tokens.
template <int Steps, bool Bytes, int N, int P, int T>
[[gnu::always_inline]] inline void add_products(const Strip& strip, int v, const Rounded* x,
                                                int first, I (&dot)[P][T]) {
    EACH (j, Steps / N) {
        B w[P][N], q[N];
        EACH (p, P)
            EACH (n, N) w[p][n] = load_bytes(strip.code[first + N * j + n] + 4 * W * (v + p));
        EACH (t, T) {
            EACH (n, N) q[n] = set_four(x[t].q + 4 * (first + N * j + n));
            EACH (p, P) dot[p][t] = dot4<Bytes>(dot[p][t], w[p], q);
        }
    }
}

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
            add_products<kSteps, Bits == 8, N>(strip, v, x, kSteps * sub, dot);
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
                float* to = acc + t * kStripRows + W * (v + p);
                store(to, fma(inner[p][t], scale, load(to)));
            }
        }
        // The compiler would keep the sums of all strips in registers that it does not have, and
        // the tile would reach 0.81 of the peak instead of 0.856 (docs/log.md).
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
}

// In a step of types with whole scales: where the lanes of rows r .. r + W begin, and how far
// behind them those of its other vector. A vector of one lane is of one sub, and the other of the
// other.
constexpr int paired_lanes(int r) { return W == 1 ? 64 * pair_half(r) + 4 * pair_lane(r) : 4 * r; }
constexpr int kOther = W == 1 ? 4 : 64;

// The same with whole scales, for one vector of rows: see whole.h. Its dot products are two
// vectors, whose lanes are of two subs in turn, until they are packed.
template <int T, int Subs, bool Min>
void whole_tile(const Strip* strips, int64_t n_strips, int v, const Rounded* x, int64_t stride,
                float* acc) {
    constexpr int kSteps = kGroup / Subs / 4, N = at_once(4);
    const int panel = v / kVectors, r = v % kVectors * W;
    for (int64_t s = 0; s < n_strips; ++s, x += stride) {
        const Strip& strip = strips[s];
        const uint8_t* codes = strip.code[panel] + paired_lanes(r);
        I whole[T];
        EACH (t, T) whole[t] = set_int(0);
        EACH (pair, Subs / 2) {
            if constexpr (Min) {
                const I least = load_int(strip.whole_min[pair] + W * v);
                EACH (t, T) whole[t] = dot_words(whole[t], least, set_int(x[t].pair_sum[pair]));
            }
            I dot[2][T];
            EACH (t, T)
                EACH (h, 2) dot[h][t] = set_two(x[t].start + 2 * pair, h);
            EACH (j, kSteps / N) {
                const int first = kSteps * pair + N * j;
                B w[2][N], q[N];
                EACH (h, 2)
                    EACH (n, N) w[h][n] = load_bytes(codes + 256 * (first + n) + kOther * h);
                EACH (t, T)
                    EACH (h, 2) {
                        EACH (n, N) q[n] = set_eight(x[t].q + 8 * (first + n), h);
                        dot[h][t] = dot4<false>(dot[h][t], w[h], q);
                    }
            }
            const I scale = load_int(strip.whole_scale[pair] + W * v);
            EACH (t, T) whole[t] = dot_words(whole[t], pack_words(dot[0][t], dot[1][t]), scale);
        }
        EACH (t, T) {
            float* to = acc + t * kStripRows + W * v;
            store(to, fma(to_float(whole[t]), set(x[t].scale), load(to)));
        }
        std::atomic_signal_fence(std::memory_order_seq_cst);  // as in dot_tile
    }
}

// Tiles of T tokens, then one of what is left: rows from vector v on.
template <class P, int T>
void dot_tiles(const Strip* strips, int64_t n_strips, int v, const Rounded* x, int64_t stride,
               int64_t n, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T) {
        float* to = acc + t * kStripRows;
        if constexpr (P::Whole)
            whole_tile<T, P::Subs, P::Min>(strips, n_strips, v, x + t, stride, to);
        else
            dot_tile<kTileVectors, T, P::Subs, P::Min, kCodeBits<P>>(strips, n_strips, v, x + t,
                                                                     stride, to);
    }
    if constexpr (T > 1)
        if (t < n)
            dot_tiles<P, T - 1>(strips, n_strips, v, x + t, stride, n - t, acc + t * kStripRows);
}

template <class P>
void dot_panels(const Strip* strips, int64_t n_strips, const Rounded* x, int64_t stride, int64_t n,
                float* acc) {
    for (int v = 0; v < kStripRows / W; v += P::Whole ? 1 : kTileVectors)
        dot_tiles<P, kTileTokens>(strips, n_strips, v, x, stride, n, acc);
}

// What a dot product needs to know of a type are its subs, minima, whether its scales are whole,
// and whether its codes have at most 5, 6 or 8 bits: eight kinds.
void dot(Type type, const Strip* strips, int64_t n_strips, const Rounded* x, int64_t stride,
         int64_t n, float* acc) {
    const auto run = [&](auto panel) {
        dot_panels<decltype(panel)>(strips, n_strips, x, stride, n, acc);
    };
    switch (type) {
        case Type::Q4_0: return run(PanelQ4_0());
        case Type::Q5_0: return run(PanelQ5_0());
        case Type::Q4_1:
        case Type::Q4_K: return run(PanelQ4_1());
        case Type::Q5_1:
        case Type::Q5_K: return run(PanelQ5_1());
        case Type::Q2_K: return run(PanelQ2_K());
        case Type::Q3_K: return run(PanelQ3_K());
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
        if constexpr (T <= kFollowed)
            prefetch_near(lines + 64 * i);
        else
            prefetch_far(lines + 64 * i);
}

// Scales are needed last, but lie first: lines are then loaded in the order in which they lie.
template <class P>
void touch_scales(const P& panel) {
    const auto* lines = reinterpret_cast<const uint8_t*>(&panel.scales);
    for (size_t i = 0; i < sizeof(panel.scales); i += 64) prefetch_here(lines + i);
}

// Rows r .. r + W of one group: the same operations as in whole_tile, without a strip in between.
// The loops over quarters are not unrolled: the compiler would ask for the whole panel in one
// burst, and one token would read 0.92 to 0.97 of what it does. One or two tokens wait for memory,
// and use up each line before they touch the next, or one would read 0.96; more tokens share what
// they take from the activations between two lines (docs/log.md).
template <class P, int T, bool Asks>
void whole_rows(const P& panel, int r, const Rounded* x, float* acc) {
    constexpr int kHalf = P::Steps / 2, N = at_once(4);
    I whole[T];
    EACH (t, T) whole[t] = set_int(0);
#pragma GCC unroll 1
    for (int pair = 0; pair < P::Subs / 2; ++pair) {
        I dot[2][T];
        EACH (t, T)
            EACH (h, 2) dot[h][t] = set_two(x[t].start + 2 * pair, h);
#pragma GCC unroll 1
        for (int i = 0; i < kHalf; i += 2) {  // two nibble vectors, each with two steps
            const int k = pair * kHalf + i;
            if (Asks && r == 0) prefetch_quarter<P, T>(panel, k / 2);
            if constexpr (T <= 2 && N == 1) {
                EACH (m, 8) {
                    const int v = m / 4, h = m / 2 % 2, high = m % 2;
                    const B nibbles =
                        load_bytes(paired_nibbles(panel, k + v) + paired_lanes(r) + kOther * h);
                    const B w[1] = {high ? high_nibbles(nibbles) : low_nibbles(nibbles)};
                    EACH (t, T) {
                        const int step = high * kHalf + i + v;
                        const B q[1] = {set_eight(x[t].q + 8 * (P::Steps * pair + step), h)};
                        dot[h][t] = dot4<false>(dot[h][t], w, q);
                    }
                }
            } else {
                EACH (j, 4 / N) {
                    B w[2][N], q[N];
                    EACH (h, 2)
                        EACH (n, N) {
                            const uint8_t* at = paired_nibbles(panel, k + (N * j + n) % 2);
                            const B nibbles = load_bytes(at + paired_lanes(r) + kOther * h);
                            w[h][n] =
                                (N * j + n) / 2 ? high_nibbles(nibbles) : low_nibbles(nibbles);
                        }
                    EACH (t, T)
                        EACH (h, 2) {
                            EACH (n, N) {
                                const int step = (N * j + n) / 2 * kHalf + i + (N * j + n) % 2;
                                q[n] = set_eight(x[t].q + 8 * (P::Steps * pair + step), h);
                            }
                            dot[h][t] = dot4<false>(dot[h][t], w[h], q);
                        }
                }
            }
        }
        I scales, minima;
        read_whole(panel, pair, r, scales, minima);
        EACH (t, T) {
            whole[t] = dot_words(whole[t], pack_words(dot[0][t], dot[1][t]), scales);
            if constexpr (P::Min)
                whole[t] = dot_words(whole[t], minima, set_int(x[t].pair_sum[pair]));
        }
    }
    EACH (t, T) {
        float* to = acc + t * kStripRows + r;
        store(to, fma(to_float(whole[t]), set(x[t].scale), load(to)));
    }
}

// Rows r .. r + W of one group: the same operations as in dot_tile, without a strip in between.
template <class P, int T, bool Asks>
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
        if (Asks && r == 0) prefetch_quarter<P, T>(panel, b);
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
        float* to = acc + t * kStripRows + r;
        store(to, fma(inner[t], set(x[t].scale), load(to)));
    }
}

template <class P, int T, bool Asks>
void dot_panels_few(const uint8_t* groups, int64_t n_groups, const Rounded* x, int64_t stride,
                    float* acc) {
    for (const Rounded* end = x + n_groups * stride; x < end; x += stride)
        for (int half = 0; half < 2; ++half, groups += sizeof(P)) {
            const P& panel = *reinterpret_cast<const P*>(groups);
            touch_scales(panel);
            for (int r = 0; r < kRows; r += W)
                if constexpr (P::Whole)
                    whole_rows<P, T, Asks>(panel, r, x, acc + kRows * half);
                else
                    dot_rows<P, T, Asks>(panel, r, x, acc + kRows * half);
        }
}

template <class P, int T>
void dot_pair(const uint8_t* groups, int64_t n_groups, const Rounded* x, int64_t stride, int64_t n,
              float* acc) {
    if constexpr (T > 1)
        if (n < T) return dot_pair<P, T - 1>(groups, n_groups, x, stride, n, acc);
    if (T <= kFollowed && follows_streams)
        dot_panels_few<P, T, false>(groups, n_groups, x, stride, acc);
    else
        dot_panels_few<P, T, true>(groups, n_groups, x, stride, acc);
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

// ---- sums -> results ----

void finish(const float* acc, int64_t n, int valid, const float* units, const float* bias,
            Activation activation, const float* residual, float* y, int64_t stride) {
    const auto value = [&](const float* sum, const float* u, const float* b, const float* r) {
        F v = load(sum);
        if (units) v = mul(v, load(u));
        if (bias) v = add(v, load(b));
        v = activate(v, activation);
        return residual ? add(v, load(r)) : v;
    };
    for (int64_t t = 0; t < n; ++t) {
        const float* row = acc + t * kStripRows;
        int i = 0;
        for (; i + W <= valid; i += W)
            store(y + t * stride + i,
                  value(row + i, units + i, bias + i, residual + t * stride + i));
        if (i == valid) continue;
        alignas(64) float u[W] = {}, b[W] = {}, r[W] = {}, out[W];
        for (int j = i; j < valid; ++j) {
            if (units) u[j - i] = units[j];
            if (bias) b[j - i] = bias[j];
            if (residual) r[j - i] = residual[t * stride + j];
        }
        store(out, value(row + i, u, b, r));
        for (int j = i; j < valid; ++j) y[t * stride + j] = out[j - i];
    }
}

}  // namespace
}  // namespace starcoder
