// Attention over blocks of 16 keys and values: part of loops.h.
#pragma once

namespace starcoder {
namespace {

void narrow(const float* from, int64_t k, half* to) {
    int64_t i = 0;
    for (; i + W <= k; i += W) store_half(to + i, load(from + i));
    if (i == k) return;
    alignas(64) float tail[W] = {};
    alignas(64) half out[W];
    for (int64_t j = i; j < k; ++j) tail[j - i] = from[j];
    store_half(out, load(tail));
    for (int64_t j = i; j < k; ++j) to[j] = out[j - i];
}

// T queries at a time, then what is left in halves of that.
template <int T, class Tile>
void in_tiles(int64_t n, Tile&& tile) {
    int64_t i = 0;
    for (; i + T <= n; i += T) tile(std::integral_constant<int, T>(), i);
    if constexpr (T > 1)
        if (i < n) in_tiles<T / 2>(n - i, [&](auto width, int64_t j) { tile(width, i + j); });
}

template <int H>
void score_tile(const float* queries, int64_t d, const float* keys, float* scores, int64_t stride) {
    for (int v = 0; v < kVectors; ++v) {
        F acc[H];
        EACH (h, H) acc[h] = set(0.0f);
        for (int64_t i = 0; i < d; ++i) {
            const F key = load(keys + i * 16 + v * W);
            EACH (h, H) acc[h] = fma(key, set(queries[h * d + i]), acc[h]);
        }
        EACH (h, H) store(scores + h * stride + v * W, acc[h]);
    }
}

void scores(const float* queries, int64_t h, int64_t d, const float* keys, float* out,
            int64_t stride) {
    in_tiles<kTileHeads>(h, [&](auto width, int64_t i) {
        score_tile<width>(queries + i * d, d, keys, out + i * stride, stride);
    });
}

void softmax(float* x, int64_t n, int64_t valid, float* max_out, float* sum_out) {
    float top = x[0];
    for (int64_t i = 1; i < valid; ++i) top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i += W) store(x + i, exp(sub(load(x + i), set(top))));
    for (int64_t i = valid; i < n; ++i) x[i] = 0.0f;
    *max_out = top;
    *sum_out = sum_of(n, [&](int64_t i) { return load(x + i); }, [&](int64_t i) { return x[i]; });
}

template <int H>
void mix_tile(const float* weights, int64_t stride, int64_t valid, int64_t d, const float* values,
              float* acc) {
    for (int64_t i = 0; i < d; i += W) {
        F sum[H];
        EACH (h, H) sum[h] = load(acc + h * d + i);
        for (int64_t key = 0; key < valid; ++key) {
            const F value = load(values + key * d + i);
            EACH (h, H) sum[h] = fma(value, set(weights[h * stride + key]), sum[h]);
        }
        EACH (h, H) store(acc + h * d + i, sum[h]);
    }
}

void mix(const float* weights, int64_t stride, int64_t valid, int64_t h, int64_t d,
         const float* values, float* acc) {
    in_tiles<kTileHeads>(h, [&](auto width, int64_t i) {
        mix_tile<width>(weights + i * stride, stride, valid, d, values, acc + i * d);
    });
}

void merge(float* acc, float* max_, float* sum, const float* acc2, float max2, float sum2,
           int64_t d) {
    alignas(64) float shift[16] = {};
    const float top = max2 > *max_ ? max2 : *max_;
    shift[0] = *max_ - top;
    shift[1] = max2 - top;
    for (int i = 0; i < 16; i += W) store(shift + i, exp(load(shift + i)));
    const float a = shift[0], b = shift[1];
    for (int64_t i = 0; i < d; i += W)
        store(acc + i, fma(load(acc + i), set(a), mul(load(acc2 + i), set(b))));
    *sum = *sum * a + sum2 * b;
    *max_ = top;
}

}  // namespace
}  // namespace starcoder
