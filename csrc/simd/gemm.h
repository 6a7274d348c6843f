// GEMM: unpacked tiles of weights times many tokens, a few at a time in registers. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// dot += `Steps` vectors of codes from `first` on, times T tokens.
template <int Steps, bool Bytes, int N, int P, int T>
[[gnu::always_inline]] inline void add_products(const UnpackedTile& tile, int v,
                                                const ActivationGroup* x, int first,
                                                I (&dot)[P][T]) {
    EACH (j, Steps / N) {
        B w[P][N], q[N];
        EACH (p, P)
            EACH (n, N) w[p][n] = load_bytes(tile.code[first + N * j + n] + 4 * W * (v + p));
        EACH (t, T) {
            EACH (n, N) q[n] = set_four(x[t].q + 4 * (first + N * j + n));
            EACH (p, P) dot[p][t] = dot4<Bytes>(dot[p][t], w[p], q);
        }
    }
}

// P vectors of rows times T tokens, with scales of f32: the operations of `add_group`.
template <int P, int T, int Subs, bool Min, int Bits>
void multiply_tile(const UnpackedTile* tiles, int64_t n_tiles, int v, const ActivationGroup* x,
                   int64_t stride, float* acc) {
    constexpr int kSteps = kBlocks * 8 / Subs;  // vectors of 4 inputs in a sub-block
    constexpr int N = at_once(Bits);
    for (int64_t s = 0; s < n_tiles; ++s, x += stride) {
        const UnpackedTile& tile = tiles[s];
        F inner[P][T];
        EACH (t, T)
            EACH (p, P) inner[p][t] = set(0.0f);
        EACH (sub, Subs) {
            I dot[P][T];
            EACH (t, T)
                EACH (p, P) dot[p][t] = set_int(Min ? 0 : x[t].start[sub]);
            add_products<kSteps, Bits == 8, N>(tile, v, x, kSteps * sub, dot);
            F scale[P];
            EACH (p, P) scale[p] = load(tile.scale[sub] + W * (v + p));
            EACH (t, T)
                EACH (p, P) inner[p][t] = fma(to_float(dot[p][t]), scale[p], inner[p][t]);
            if constexpr (Min) {
                F least[P];
                EACH (p, P) least[p] = load(tile.min[sub] + W * (v + p));
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
        // The compiler would keep the sums of all tiles in registers that it does not have: 0.81 of
        // the peak instead of 0.856.
        std::atomic_signal_fence(std::memory_order_seq_cst);
    }
}

// The same with int16 scales, for one vector of rows: the operations of `add_group_int16`.
template <int T, int Subs, bool Min>
void multiply_tile_int16(const UnpackedTile* tiles, int64_t n_tiles, int v,
                         const ActivationGroup* x, int64_t stride, float* acc) {
    constexpr int kSteps = kGroup / Subs / 4, N = at_once(4);
    const int panel = v / kVectors, r = v % kVectors * W;
    for (int64_t s = 0; s < n_tiles; ++s, x += stride) {
        const UnpackedTile& tile = tiles[s];
        const uint8_t* codes = tile.code[panel] + step_offset(r);
        I inner[T];
        EACH (t, T) inner[t] = set_int(0);
        EACH (pair, Subs / 2) {
            if constexpr (Min) {
                const I least = load_int(tile.min16[pair] + W * v);
                EACH (t, T) inner[t] = dot_int16(inner[t], least, set_int(x[t].pair_sum[pair]));
            }
            I dot[2][T];
            EACH (t, T)
                EACH (h, 2) dot[h][t] = set_two(x[t].start + 2 * pair, h);
            EACH (j, kSteps / N) {
                const int first = kSteps * pair + N * j;
                B w[2][N], q[N];
                EACH (h, 2)
                    EACH (n, N) w[h][n] = load_bytes(codes + 256 * (first + n) + kSecondVector * h);
                EACH (t, T)
                    EACH (h, 2) {
                        EACH (n, N) q[n] = set_eight(x[t].q + 8 * (first + n), h);
                        dot[h][t] = dot4<false>(dot[h][t], w[h], q);
                    }
            }
            const I scale = load_int(tile.scale16[pair] + W * v);
            EACH (t, T) inner[t] = dot_int16(inner[t], pack_int16(dot[0][t], dot[1][t]), scale);
        }
        EACH (t, T) {
            float* to = acc + t * kStripRows + W * v;
            store(to, fma(to_float(inner[t]), set(x[t].scale), load(to)));
        }
        std::atomic_signal_fence(std::memory_order_seq_cst);  // as in multiply_tile
    }
}

// Tiles of T tokens, then one of what is left: rows from vector v on.
template <int T, class P>
void multiply_tokens(const UnpackedTile* tiles, int64_t n_tiles, int v, const ActivationGroup* x,
                     int64_t stride, int64_t n, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T) {
        float* to = acc + t * kStripRows;
        if constexpr (P::Int16)
            multiply_tile_int16<T, P::Subs, P::Min>(tiles, n_tiles, v, x + t, stride, to);
        else
            multiply_tile<kTileVectors, T, P::Subs, P::Min, P::Bits>(tiles, n_tiles, v, x + t,
                                                                     stride, to);
    }
    if constexpr (T > 1)
        if (t < n)
            multiply_tokens<T - 1, P>(tiles, n_tiles, v, x + t, stride, n - t,
                                      acc + t * kStripRows);
}

// All that a tile of a type needs to be known by: eight kinds for eleven types.
template <int Subs_, bool Min_, int Bits_, bool Int16_>
struct TileTraits {
    static constexpr int Subs = Subs_, Bits = Bits_;
    static constexpr bool Min = Min_, Int16 = Int16_;
};

template <class P>
void multiply_strip(const UnpackedTile* tiles, int64_t n_tiles, const ActivationGroup* x,
                    int64_t stride, int64_t n, float* acc) {
    for (int v = 0; v < kStripRows / W; v += P::Int16 ? 1 : kTileVectors)
        multiply_tokens<kTileTokens, P>(tiles, n_tiles, v, x, stride, n, acc);
}

void gemm(Type type, const UnpackedTile* tiles, int64_t n_tiles, const ActivationGroup* x,
          int64_t stride, int64_t n, float* acc) {
    visit<Quantized>(type, [&](auto kind) {
        using P = typename decltype(kind)::Panel;
        multiply_strip<TileTraits<P::Subs, P::Min, kCodeBits<P>, P::Int16>>(tiles, n_tiles, x,
                                                                            stride, n, acc);
    });
}

}  // namespace
}  // namespace starcoder
