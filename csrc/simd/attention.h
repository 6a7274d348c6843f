// Attention over blocks of 16 keys and values: part of loops.h.
#pragma once

namespace starcoder {
namespace {

// T queries at a time, then what is left in halves of that.
template <int T, class Tile>
void in_tiles(int64_t n, Tile&& tile) {
    int64_t i = 0;
    for (; i + T <= n; i += T) tile(std::integral_constant<int, T>(), i);
    if constexpr (T > 1)
        if (i < n) in_tiles<T / 2>(n - i, [&](auto width, int64_t j) { tile(width, i + j); });
}

// Calls tile(P, i) for i in steps of P vectors, then one by one for what is left.
template <int P, class Tile>
void in_vectors(int64_t n, Tile&& tile) {
    int64_t i = 0;
    for (; i + P <= n; i += P) tile(std::integral_constant<int, P>(), i);
    for (; i < n; ++i) tile(std::integral_constant<int, 1>(), i);
}

// P vectors of keys, `next` floats from one to the next, times H queries.
template <int P, int H>
void score_tile(const float* queries, int64_t d, const float* keys, int64_t next, float* scores,
                int64_t stride) {
    F acc[P][H];
    EACH (p, P)
        EACH (h, H) acc[p][h] = set(0.0f);
    add_outer_products(
        d, acc, [&](int64_t i, int p) { return load(keys + i * 16 + p * next); },
        [&](int64_t i, int h) { return set(queries[h * d + i]); });
    EACH (p, P)
        EACH (h, H) store(scores + h * stride + p * W, acc[p][h]);
}

void scores(const float* queries, int64_t h, int64_t d, const float* keys, int64_t n_blocks,
            float* out, int64_t stride) {
    const int64_t next = kVectors == 1 ? 16 * d : W;  // P divides the vectors of a block, or is 1
    in_vectors<kTileKeys>(n_blocks * kVectors, [&](auto vectors, int64_t v) {
        const float* from = keys + v / kVectors * 16 * d + v % kVectors * W;
        in_tiles<kTileHeads>(h, [&](auto heads, int64_t i) {
            score_tile<vectors, heads>(queries + i * d, d, from, next, out + i * stride + v * W,
                                       stride);
        });
    });
}

// The largest of x (n), n >= 1, in sixteen chains: in a single one each comparison would wait for
// the one before, four cycles a key.
float largest(const float* x, int64_t n) {
    alignas(64) float lanes[16];
    F tops[kVectors];
    int64_t i = 0;
    for (int v = 0; v < kVectors; ++v) tops[v] = set(x[0]);
    for (; i + 16 <= n; i += 16)
        for (int v = 0; v < kVectors; ++v) tops[v] = max(tops[v], load(x + i + v * W));
    for (int v = 0; v < kVectors; ++v) store(lanes + v * W, tops[v]);
    for (int lane = 0; i < n; ++i, ++lane) lanes[lane] = x[i] > lanes[lane] ? x[i] : lanes[lane];
    for (int width = 8; width; width /= 2)
        for (int j = 0; j < width; ++j)
            lanes[j] = lanes[j + width] > lanes[j] ? lanes[j + width] : lanes[j];
    return lanes[0];
}

void softmax(float* x, int64_t n, int64_t valid, float* max_out, float* sum_out) {
    const float top = largest(x, valid);
    F sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = set(0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        for (int v = 0; v < kVectors; ++v) {
            float* at = x + i + v * W;
            store(at, exp(sub(load(at), set(top))));
        }
        for (int64_t j = valid > i ? valid : i; j < i + 16; ++j) x[j] = 0.0f;
        for (int v = 0; v < kVectors; ++v) sums[v] = add(sums[v], load(x + i + v * W));
    }
    alignas(64) float lanes[16];
    for (int v = 0; v < kVectors; ++v) store(lanes + v * W, sums[v]);
    *max_out = top;
    *sum_out = sum16(lanes);
}

// P vectors of dimensions, for H heads.
template <int P, int H>
void weighted_values_tile(const float* weights, int64_t stride, int64_t valid, int64_t d,
                          const float* values, float* acc) {
    F sum[P][H];
    EACH (h, H)
        EACH (p, P) sum[p][h] = load(acc + h * d + p * W);
    add_outer_products(
        valid, sum, [&](int64_t key, int p) { return load(values + key * d + p * W); },
        [&](int64_t key, int h) { return set(weights[h * stride + key]); });
    EACH (h, H)
        EACH (p, P) store(acc + h * d + p * W, sum[p][h]);
}

// Vectors in the outer loop: what they take of the values stays in the first-level cache.
void weighted_values(const float* weights, int64_t stride, int64_t valid, int64_t h, int64_t d,
                     const float* values, float* acc) {
    in_vectors<kTileKeys>(d / W, [&](auto vectors, int64_t v) {
        in_tiles<kTileHeads>(h, [&](auto heads, int64_t i) {
            weighted_values_tile<vectors, heads>(weights + i * stride, stride, valid, d,
                                                 values + v * W, acc + i * d + v * W);
        });
    });
}

// ---- the same with bf16 ----
//
// A product of pairs is fma(first, first', fma(second, second', acc)), which is what CPUs with an
// instruction for it do. Without one, the second of each pair stands first, and the loops above
// give the same bits.

void round_pairs(float* x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        alignas(64) uint16_t rounded[16];
        round_bf16(x + i, 16, rounded);
        for (int64_t j = 0; j < 16; ++j)
            x[i + j] = __builtin_bit_cast(float, uint32_t{rounded[j ^ 1]} << 16);
    }
}

// Rows of `len` pairs, a multiple of 16, become two rows of floats each, the seconds first.
void widen_pairs(const uint16_t* x, int64_t n_rows, int64_t len, float* out) {
    for (int64_t i = 0; i < n_rows; ++i, x += 2 * len, out += 2 * len)
        for (int64_t j = 0; j < len; j += W) {
            store(out + j, load_bf16(x + 2 * j, true));
            store(out + len + j, load_bf16(x + 2 * j, false));
        }
}

void scores_bf16(const float* queries, int64_t h, int64_t d, const uint16_t* const* keys,
                 int64_t n_blocks, Prefetcher*, float* room, float* out, int64_t stride) {
    for (int64_t b = 0; b < n_blocks; ++b) widen_pairs(keys[b], d / 2, 16, room + b * 16 * d);
    scores(queries, h, d, room, n_blocks, out, stride);
}

void weighted_values_bf16(const float* weights, int64_t stride, int64_t key, int64_t valid,
                          int64_t h, int64_t d, const uint16_t* const* values, Prefetcher*,
                          float* room, float* acc) {
    for (int64_t i = 0; i < valid; i += 16)
        widen_pairs(values[i / 16], (valid - i < 16 ? valid - i + 1 : 16) / 2, d, room + i * d);
    const int64_t pairs = valid / 2 * 2;
    weighted_values(weights + key, stride, pairs, h, d, room, acc);
    if (pairs < valid)  // the second of the last pair is not to be seen
        weighted_values(weights + key + valid, stride, 1, h, d, room + valid * d, acc);
}

void merge(float* acc, float* max_, float* sum, const float* acc2, const float* max2,
           const float* sum2, int64_t n, int64_t d) {
    for (int64_t first = 0; first < n; first += 16) {
        const int64_t count = n - first < 16 ? n - first : 16;
        alignas(64) float a[16] = {}, b[16] = {};
        for (int64_t i = 0; i < count; ++i) {
            const float one = max_[first + i], other = max2[first + i];
            const float top = other > one ? other : one;
            a[i] = one - top;
            b[i] = other - top;
            max_[first + i] = top;
        }
        for (int i = 0; i < 16; i += W) {
            store(a + i, exp(load(a + i)));
            store(b + i, exp(load(b + i)));
        }
        for (int64_t i = 0; i < count; ++i, acc += d, acc2 += d) {
            sum[first + i] = sum[first + i] * a[i] + sum2[first + i] * b[i];
            for (int64_t j = 0; j < d; j += W)
                store(acc + j, fma(load(acc + j), set(a[i]), mul(load(acc2 + j), set(b[i]))));
        }
    }
}

}  // namespace
}  // namespace starcoder
