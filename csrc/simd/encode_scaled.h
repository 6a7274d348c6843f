// The scales and codes of least squared error: w = scale * q, q in -Half .. Half - 1 (Q3_K, Q6_K),
// or in a codebook (IQ4_NL). Part of loops.h.
#pragma once

namespace starcoder {
namespace {

template <int Half>
struct Even {  // evenly spaced values
    static constexpr float kLow = -Half, kHigh = Half - 1;
    static F value(F x) { return nearest(x, set(kLow), set(kHigh)); }
    static I code(F x) { return add_int(round(clamp(x, set(kLow), set(kHigh))), set_int(Half)); }
};

struct Book {  // IQ4_NL's
    static constexpr float kLow = -127, kHigh = 113;
    static float between(int i) { return (kCodebookIQ4NL[i] + kCodebookIQ4NL[i + 1]) * 0.5f; }
    static F value(F x) {
        F v = set(kLow);
        for (int i = 0; i < 15; ++i) {
            const auto step = static_cast<float>(kCodebookIQ4NL[i + 1] - kCodebookIQ4NL[i]);
            v = add(v, select_less(set(between(i)), x, set(step), set(0.0f)));
        }
        return v;
    }
    static I code(F x) {
        F n = set(0.0f);
        for (int i = 0; i < 15; ++i)
            n = add(n, select_less(set(between(i)), x, set(1.0f), set(0.0f)));
        return round(n);
    }
};

F signed_inverse(F x) {
    const F sign = select_less(x, set(0.0f), set(-1.0f), set(1.0f));
    return mul(sign, inverse_above(abs(x), kTiny));
}

template <class Values, int Len>
struct ScaleSearch {
    const Tile<Len>& tile;
    int lane;
    F per_top;  // 1 / the weight of largest magnitude, or 0
    F gain, scale;

    F x(int i) const { return load(tile.x[i] + lane); }

    ScaleSearch(const Tile<Len>& weights, int first) : tile(weights), lane(first) {
        F top = set(0.0f);
        for (int i = 0; i < Len; ++i) top = select_less(abs(top), abs(x(i)), x(i), top);
        per_top = signed_inverse(top);
        gain = scale = set(0.0f);
    }

    void consider(F inv) {
        F q2 = set(0.0f), xq = q2;
        for (int i = 0; i < Len; ++i) {
            const F q = Values::value(mul(x(i), inv));
            q2 = add(q2, mul(q, q));
            xq = add(xq, mul(x(i), q));
        }
        const F s = div(xq, max(q2, set(1.0f))), gain2 = mul(s, xq);
        scale = select_less(gain, gain2, s, scale);
        gain = select_less(gain, gain2, gain2, gain);
    }

    // The largest weight near the lowest value, or near the highest one.
    void run(int steps, float reach) {
        for (int k = 0; k <= steps; ++k) {
            const float off = reach * (2.0f * float(k) / float(steps) - 1.0f);
            consider(mul(set(Values::kLow + off), per_top));
            consider(mul(set(Values::kHigh + off), per_top));
        }
        for (int k = 0; k < 2; ++k) consider(signed_inverse(scale));
    }
};

template <class Values, int Most, int Len>
void settle_scale(const Tile<Len>& tile, int lane, Nested& nested) {
    const F d = load(nested.d + lane), sc0 = load(nested.sc + lane), zero = set(0.0f);
    F least = set(3e38f), best = zero;
    for (int i = -1; i <= 1; ++i) {
        const F sc = clamp(add(sc0, set(float(i))), set(float(-Most)), set(float(Most - 1)));
        const F scale = mul(d, sc), inv = signed_inverse(scale);
        F error = zero;
        for (int k = 0; k < Len; ++k) {
            const F x = load(tile.x[k] + lane);
            const F miss = sub(x, mul(scale, Values::value(mul(x, inv))));
            error = add(error, mul(miss, miss));
        }
        best = select_less(error, least, sc, best);
        least = select_less(error, least, error, least);
    }
    store(nested.sc + lane, best);
}

template <class Values, int Len>
void code_scale(const Tile<Len>& tile, int lane, const Nested& nested, Coded<Len>& codes) {
    const F inv = signed_inverse(mul(load(nested.d + lane), load(nested.sc + lane)));
    F q2 = set(0.0f), xq = q2;
    for (int i = 0; i < Len; ++i) {
        const F x = load(tile.x[i] + lane), at = mul(x, inv), q = Values::value(at);
        store_bytes(codes.q[i] + lane, Values::code(at));
        q2 = add(q2, mul(q, q));
        xq = add(xq, mul(x, q));
    }
    store(codes.q2 + lane, q2);
    store(codes.xq + lane, xq);
}

template <int Len>
void refit_scale(const Coded<Len>& codes, int lane, int lanes, float unit, Nested& nested) {
    double a = 0, p = 0;
    for (int j = lane; j < lane + lanes; ++j) {
        const double sc = nested.sc[j];
        a += sc * sc * codes.q2[j];
        p += sc * codes.xq[j];
    }
    if (a > 0) nested.set_scales(lane, lanes, unit, float(p / a), 0.0f);
}

// One block of sixteen groups: the scale of largest magnitude is -Most.
template <class Values, int Most, int Steps, int Len>
void encode_scaled(const Tile<Len>& tile, Nested& nested, Coded<Len>& codes) {
    alignas(64) float scale[kLanes];
    for (int v = 0; v < kLanes; v += W) {
        ScaleSearch<Values, Len> search(tile, v);
        search.run(Steps, 0.9f);
        store(scale + v, search.scale);
    }
    float top = 0;
    for (float s : scale) top = magnitude(s) > magnitude(top) ? s : top;
    nested.set_scales(0, kLanes, tile.unit[0], top / -Most, 0.0f);
    for (int pass = 0; pass < 2; ++pass) {
        for (int v = 0; v < kLanes; v += W) {
            if (pass == 0) {
                const F near = mul(load(scale + v), signed_inverse(load(nested.d + v)));
                store(nested.sc + v, nearest(near, set(float(-Most)), set(float(Most - 1))));
            }
            settle_scale<Values, Most>(tile, v, nested);
            code_scale<Values>(tile, v, nested, codes);
        }
        refit_scale(codes, 0, kLanes, tile.unit[0], nested);
    }
    for (int v = 0; v < kLanes; v += W) code_scale<Values>(tile, v, nested, codes);
}

}  // namespace
}  // namespace starcoder
