// What becomes of the sums of a product: units, bias, activation, residual. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

void epilogue(const float* acc, int64_t n, int valid, const float* units, const float* bias,
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
