// Norms and gates, a row at a time: part of loops.h.
#pragma once

namespace starcoder {
namespace {

// Where squares overflow, dividing would leave zeros, as if all were well: that is NaN.
float inverse_root(float mean_square, float eps) {
    const bool fits = mean_square < __builtin_inff();
    return fits ? 1.0f / __builtin_sqrtf(mean_square + eps) : __builtin_nanf("");
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t k,
                float* y) {
    const auto n = static_cast<float>(k);
    const float mean =
        sum_of(k, [&](int64_t i) { return load(x + i); }, [&](int64_t i) { return x[i]; }) / n;
    const auto square = [](F v) { return mul(v, v); };
    const float variance = sum_of(
                               k, [&](int64_t i) { return square(sub(load(x + i), set(mean))); },
                               [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) /
                           n;
    const float scale = inverse_root(variance, eps);
    int64_t i = 0;
    for (; i + W <= k; i += W) {
        const F v = mul(sub(load(x + i), set(mean)), set(scale));
        store(y + i, fma(v, load(weight + i), load(bias + i)));
    }
    for (; i < k; ++i) y[i] = __builtin_fmaf((x[i] - mean) * scale, weight[i], bias[i]);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t k, float* y) {
    const float mean_square = sum_of(
                                  k, [&](int64_t i) { return mul(load(x + i), load(x + i)); },
                                  [&](int64_t i) { return x[i] * x[i]; }) /
                              static_cast<float>(k);
    const float scale = inverse_root(mean_square, eps);
    int64_t i = 0;
    for (; i + W <= k; i += W) store(y + i, mul(mul(load(x + i), set(scale)), load(weight + i)));
    for (; i < k; ++i) y[i] = x[i] * scale * weight[i];
}

void gated(const float* gate, const float* up, int64_t n, Activation activation, float* y) {
    int64_t i = 0;
    for (; i + W <= n; i += W)
        store(y + i, mul(activate(load(gate + i), activation), load(up + i)));
    if (i == n) return;
    alignas(64) float g[W] = {}, u[W] = {}, out[W];
    for (int64_t j = i; j < n; ++j) g[j - i] = gate[j], u[j - i] = up[j];
    store(out, mul(activate(load(g), activation), load(u)));
    for (int64_t j = i; j < n; ++j) y[j] = out[j - i];
}

}  // namespace
}  // namespace starcoder
