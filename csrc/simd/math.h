// Sums and elementary functions: part of loops.h.
#pragma once

namespace starcoder {
namespace {

// ---- sums of products ----

// acc[p][t] += vector(i, p) * number(i, t) for i from 0 to n, each a chain of `fma`: a tile of a
// product of matrices in registers, P vectors of rows times T numbers.
template <int P, int T, class Vectors, class Numbers>
[[gnu::always_inline]] inline void add_outer_products(int64_t n, F (&acc)[P][T], Vectors&& vector,
                                                      Numbers&& number) {
    for (int64_t i = 0; i < n; ++i) {
        F left[P];
        EACH (p, P) left[p] = vector(i, p);
        EACH (t, T) {
            const F right = number(i, t);
            EACH (p, P) acc[p][t] = fma(left[p], right, acc[p][t]);
        }
    }
}

// ---- sums over sixteen partial sums ----

float sum16(const float* s) {
    float t[16];
    for (int i = 0; i < 16; ++i) t[i] = s[i];
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) t[i] += t[i + width];
    return t[0];
}

// Adds f(0 .. k) in sixteen lanes; `vector(i)` gives lanes i .. i + W, `scalar(i)` one.
template <class V, class S>
float sum_of(int64_t k, V vector, S scalar) {
    F acc[kVectors];
    for (int v = 0; v < kVectors; ++v) acc[v] = set(0.0f);
    int64_t i = 0;
    for (; i + 16 <= k; i += 16)
        for (int v = 0; v < kVectors; ++v) acc[v] = add(acc[v], vector(i + v * W));
    alignas(64) float lanes[16];
    for (int v = 0; v < kVectors; ++v) store(lanes + v * W, acc[v]);
    for (int lane = 0; i < k; ++i, ++lane) lanes[lane] += scalar(i);
    return sum16(lanes);
}

// ---- elementary functions ----

// e^x within 2 units in the last place; the polynomial is Cephes' expf. 0 below -87.3, and NaN
// stays NaN: `min` and `max` let it through as their second operand, and what `round` makes of it
// adds nothing to its bits.
[[gnu::always_inline]] inline F exp(F x) {  // a call costs as much as it does
    const F low = set(-87.3f);
    const F clipped = min(set(88.0f), max(low, x));
    const I n = round(mul(clipped, set(1.44269504088896341f)));
    const F nf = to_float(n);
    F r = fma(nf, set(-0.693359375f), clipped);
    r = fma(nf, set(2.12194440e-4f), r);
    F p = set(1.9875691500e-4f);
    p = fma(p, r, set(1.3981999507e-3f));
    p = fma(p, r, set(8.3334519073e-3f));
    p = fma(p, r, set(4.1665795894e-2f));
    p = fma(p, r, set(1.6666665459e-1f));
    p = fma(p, r, set(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set(1.0f));
    return zero_where_less(times_power_of_two(p, n), x, low);
}

// x / (1 + e^(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): the same as 0.5 x (1 + tanh(u)).
F gelu_tanh(F x) {
    const F u2 = mul(mul(set(-1.5957691216057308f), x), fma(mul(x, x), set(0.044715f), set(1.0f)));
    return div(x, add(set(1.0f), exp(u2)));
}

// 0.5 x (1 + erf(x / sqrt(2))), erf by Abramowitz and Stegun 7.1.26: absolute error 1.5e-7.
F gelu_erf(F x) {
    const F z = mul(abs(x), set(0.70710678118654752f));
    const F t = div(set(1.0f), fma(z, set(0.3275911f), set(1.0f)));
    F p = set(1.061405429f);
    p = fma(p, t, set(-1.453152027f));
    p = fma(p, t, set(1.421413741f));
    p = fma(p, t, set(-0.284496736f));
    p = fma(p, t, set(0.254829592f));
    // tail = erfc(|z|) / 2, so gelu = x (1 - tail) above 0 and x tail below.
    const F tail = mul(mul(mul(p, t), exp(mul(mul(z, z), set(-1.0f)))), set(0.5f));
    return mul(x, select_less(x, set(0.0f), tail, sub(set(1.0f), tail)));
}

// x / (1 + e^-x)
F silu(F x) { return div(x, add(set(1.0f), exp(mul(set(-1.0f), x)))); }

F activate(F x, Activation activation) {
    switch (activation) {
        case Activation::None: return x;
        case Activation::GeluTanh: return gelu_tanh(x);
        case Activation::GeluErf: return gelu_erf(x);
        case Activation::Silu: return silu(x);
    }
    return x;
}

}  // namespace
}  // namespace starcoder
