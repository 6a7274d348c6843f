// Products of bf16 pairs with AVX-512: part of avx512.cpp.
#pragma once

namespace starcoder {
namespace {

// Cooper Lake, Sapphire Rapids and Zen 4 multiply pairs of bf16, Ice Lake does not: these functions
// have the instruction, and the CPU is asked before they get into the table. For every lane it is
// fma(first, first', fma(second, second', acc)), as measured with 2,000,000 random numbers.
#define WITH_PAIRS __attribute__((target("avx512bf16")))

WITH_PAIRS inline F dot2(F acc, B a, B b) {
    return _mm512_dpbf16_ps(acc, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b));
}

template <int T, bool Prefetch>
WITH_PAIRS void bf16_tile(const uint8_t* group, int64_t n_pairs, const Bf16Group* x, float* acc) {
    F sum[2][T];
    EACH (t, T) sum[0][t] = sum[1][t] = set(0.0f);
    for (int64_t i = 0; i < n_pairs; ++i) {
        const uint8_t* lines = group + 2 * 64 * i;
        if constexpr (Prefetch)
            for (int p = 0; p < 2; ++p) prefetch_far(lines + 64 * p);
        const B w[2] = {load_bytes(lines), load_bytes(lines + 64)};
        EACH (t, T) {
            const B a = set_four(reinterpret_cast<const int8_t*>(x[t].x + 2 * i));
            sum[0][t] = dot2(sum[0][t], w[0], a);
            sum[1][t] = dot2(sum[1][t], w[1], a);
        }
    }
    EACH (t, T)
        for (int p = 0; p < 2; ++p) {
            float* to = acc + t * kStripRows + W * p;
            store(to, add(load(to), sum[p][t]));
        }
}

template <int T, bool First>
WITH_PAIRS void bf16_tiles(const uint8_t* group, int64_t n_pairs, const Bf16Group* x, int64_t n,
                           float* acc) {
    if constexpr (T > 1)
        if (n < T) return bf16_tiles<T - 1, First>(group, n_pairs, x, n, acc);
    if (First && !(T <= kStreamTokensFloats && hardware_follows_streams))
        bf16_tile<T, true>(group, n_pairs, x, acc);
    else
        bf16_tile<T, false>(group, n_pairs, x, acc);
    int64_t t = T;
    for (; t + T <= n; t += T) bf16_tile<T, false>(group, n_pairs, x + t, acc + t * kStripRows);
    if constexpr (T > 1)
        if (t < n) bf16_tiles<T - 1, false>(group, n_pairs, x + t, n - t, acc + t * kStripRows);
}

WITH_PAIRS void gemm_bf16(const uint8_t* group, int64_t n_pairs, const Bf16Group* x, int64_t n,
                          float* acc) {
    bf16_tiles<kFloatTileTokens, true>(group, n_pairs, x, n, acc);
}

// The instruction takes numbers below 2^-126 for 0 of their sign, as `round_bf16` does.
WITH_PAIRS void round_bf16_packed(const float* x, int64_t k, uint16_t* to) {
    int64_t i = 0;
    for (; i + W <= k; i += W)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                            __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(load(x + i))));
    round_bf16(x + i, k - i, to + i);
}

// In place: what is written lies behind what is still to be read.
void round_pairs_packed(float* x, int64_t n) {
    round_bf16_packed(x, n, reinterpret_cast<uint16_t*>(x));
}

inline const int8_t* pairs_of(const float* row, int64_t first) {
    return reinterpret_cast<const int8_t*>(row) + 2 * first;
}

template <int P, int H, bool Prefetch>
WITH_PAIRS void scores_bf16_tile(const float* queries, int64_t d, const uint16_t* const* keys,
                                 Prefetcher* prefetcher, float* out, int64_t stride) {
    F acc[P][H];
    EACH (p, P)
        EACH (h, H) acc[p][h] = set(0.0f);
    for (int64_t i = 0; i < d; i += 2) {
        if constexpr (Prefetch) prefetcher->step();
        B key[P];
        EACH (p, P) key[p] = load_bytes(reinterpret_cast<const uint8_t*>(keys[p] + 16 * i));
        EACH (h, H) {
            const B query = set_four(pairs_of(queries + h * d, i));
            EACH (p, P) acc[p][h] = dot2(acc[p][h], key[p], query);
        }
    }
    EACH (p, P)
        EACH (h, H) store(out + h * stride + p * W, acc[p][h]);
}

void scores_bf16_packed(const float* queries, int64_t h, int64_t d, const uint16_t* const* keys,
                        int64_t n_blocks, Prefetcher* prefetcher, float*, float* out,
                        int64_t stride) {
    in_vectors<kTileKeys>(n_blocks, [&](auto blocks, int64_t b) {
        in_tiles<kTileHeads>(h, [&](auto heads, int64_t i) {
            (prefetcher ? scores_bf16_tile<blocks, heads, true>
                        : scores_bf16_tile<blocks, heads, false>)(queries + i * d, d, keys + b,
                                                                  prefetcher,
                                                                  out + i * stride + b * W, stride);
        });
    });
}

// Values from dimension v on, in blocks of 16 positions.
template <int P, int H, bool Prefetch>
WITH_PAIRS void weighted_values_bf16_tile(const float* weights, int64_t stride, int64_t key,
                                          int64_t valid, int64_t d, const uint16_t* const* values,
                                          int64_t v, Prefetcher* prefetcher, float* acc) {
    F sum[P][H];
    EACH (h, H)
        EACH (p, P) sum[p][h] = load(acc + h * d + p * W);
    for (int64_t j = 0; j < valid; j += 2) {
        if constexpr (Prefetch) prefetcher->step();
        const uint16_t* pairs = values[j / 16] + j % 16 * d + 2 * v;
        B value[P];
        EACH (p, P) value[p] = load_bytes(reinterpret_cast<const uint8_t*>(pairs + 2 * p * W));
        if (j + 1 == valid)  // the second is not to be seen
            EACH (p, P) value[p] = _mm512_and_si512(value[p], set_int(0xffff));
        EACH (h, H) {
            const B weight = set_four(pairs_of(weights + h * stride, key + j));
            EACH (p, P) sum[p][h] = dot2(sum[p][h], value[p], weight);
        }
    }
    EACH (h, H)
        EACH (p, P) store(acc + h * d + p * W, sum[p][h]);
}

void weighted_values_bf16_packed(const float* weights, int64_t stride, int64_t key, int64_t valid,
                                 int64_t h, int64_t d, const uint16_t* const* values,
                                 Prefetcher* prefetcher, float*, float* acc) {
    in_vectors<kTileKeys>(d / W, [&](auto vectors, int64_t v) {
        in_tiles<kTileHeads>(h, [&](auto heads, int64_t i) {
            (prefetcher ? weighted_values_bf16_tile<vectors, heads, true>
                        : weighted_values_bf16_tile<vectors, heads, false>)(weights + i * stride,
                                                                            stride, key, valid, d,
                                                                            values, v * W,
                                                                            prefetcher,
                                                                            acc + i * d + v * W);
        });
    });
}

WITH_PAIRS Products bf16_peak(const uint16_t* w, const uint16_t* x, int64_t rounds) {
    const B a = load_bytes(reinterpret_cast<const uint8_t*>(w));
    const B b = load_bytes(reinterpret_cast<const uint8_t*>(x));
    FloatSums sums;
    for (int64_t i = 0; i < rounds; ++i)
        EACH (v, kTileVectors)
            EACH (t, kFloatTileTokens) sums.sum[v][t] = dot2(sums.sum[v][t], a, b);
    return {rounds * FloatSums::kChains * W * 2, sums.total()};
}

}  // namespace
}  // namespace starcoder
