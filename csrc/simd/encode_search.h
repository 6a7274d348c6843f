// The scales and codes of least squared error, for the nested types and IQ4_NL: part of loops.h.
//
// Sixteen groups stand side by side in a tile, one a lane, so that sums need no order but that of
// the weights, and every instruction set finds the same.
#pragma once

namespace starcoder {
namespace {

constexpr half kNotANumber = 0x7e00;
constexpr int32_t kInfinity = 0x7f800000;  // as bits
constexpr int kLanes = 16;

int32_t magnitude(float x) { return __builtin_bit_cast(int32_t, x) & 0x7fffffff; }

// The largest magnitude, as bits; above kInfinity where there is a NaN.
int32_t top_of(const float* x, int n) {
    int32_t top = 0;
    for (int i = 0; i < n; ++i) top = magnitude(x[i]) > top ? magnitude(x[i]) : top;
    return top;
}

// ---- tiles: sixteen groups side by side ----

// Weights (Len, 16) of one or more blocks, each block times a power of two that brings its largest
// weight to 1 .. 2 (or 4, from 2^127 on): nothing overflows on the way.
template <int Len>
struct Tile {
    alignas(64) float x[Len][kLanes];
    float unit[kLanes];   // what 1 stands for in the lane's block
    bool finite[kLanes];  // of the lane's block
};

template <int Len>
void fill(const float* x, int n_blocks, int lanes, Tile<Len>& tile) {
    for (int lane = 0; lane < kLanes; lane += lanes) {
        const bool present = lane < n_blocks * lanes;
        const float* block = x + lane * Len;
        const int32_t top = present ? top_of(block, lanes * Len) : 0;
        // A block without a normal number (bits below 2^-126) becomes zero.
        const bool some = top >= 1 << 23 && top < kInfinity;
        const int exponent = some ? 254 - (top >> 23) : 127;
        const int32_t up = exponent < 1 ? 1 : exponent;
        const float factor = some ? __builtin_bit_cast(float, up << 23) : 0.0f;
        for (int j = lane; j < lane + lanes; ++j) {
            tile.unit[j] = __builtin_bit_cast(float, (254 - up) << 23);
            tile.finite[j] = top < kInfinity;
            if (some)
                for (int i = 0; i < Len; ++i) tile.x[i][j] = x[j * Len + i] * factor;
            else
                for (int i = 0; i < Len; ++i) tile.x[i][j] = 0.0f;
        }
    }
}

// A scale as f16 can hold it: the nearest finite one, never -0, and never 0 where `whole` numbers
// will multiply it and the smallest is of use.
half scale_bits(float d, bool whole) {
    constexpr float kMost = 65504.0f;
    const half bits = float_to_half(d > kMost ? kMost : d < -kMost ? -kMost : d);
    if (bits & 0x7fff) return bits;
    return whole && d != 0 ? bits | 1 : 0;
}

F clamp(F x, F low, F high) { return min(max(x, low), high); }

F nearest(F x, F low, F high) { return to_float(round(clamp(x, low, high))); }

F inverse_above(F x, float tiny) {  // 0 where x is not above
    return select_less(set(tiny), x, div(set(1.0f), max(x, set(tiny))), set(0.0f));
}

constexpr float kTiny = 1e-20f;  // of weights around 1

// ---- w = scale * q + offset, q in 0 .. Top, offset <= 0 ----

// The best fit so far of the groups in W lanes, by how much squared error it takes away.
struct Affine {
    F gain, scale, offset;

    void keep_better(F gain2, F scale2, F offset2) {
        scale = select_less(gain, gain2, scale2, scale);
        offset = select_less(gain, gain2, offset2, offset);
        gain = select_less(gain, gain2, gain2, gain);
    }
};

template <int Top, int Len>
struct AffineSearch {
    const Tile<Len>& tile;
    int lane;
    F sum, low, range;
    Affine best;

    F x(int i) const { return load(tile.x[i] + lane); }

    AffineSearch(const Tile<Len>& weights, int first) : tile(weights), lane(first) {
        sum = low = set(0.0f);
        F high = x(0);
        for (int i = 0; i < Len; ++i) {
            sum = add(sum, x(i));
            low = min(low, x(i));
            high = max(high, x(i));
        }
        range = max(sub(high, low), set(kTiny));
        const F mean = min(mul(sum, set(1.0f / Len)), set(0.0f));  // all codes 0
        best = {mul(mean, sum), set(0.0f), mean};
    }

    // Codes q = (x - from) * inv; then the scale and offset that suit them best.
    void consider(F from, F inv) {
        F q1 = set(0.0f), q2 = q1, xq = q1;
        for (int i = 0; i < Len; ++i) {
            const F q = nearest(mul(sub(x(i), from), inv), set(0.0f), set(float(Top)));
            q1 = add(q1, q);
            q2 = add(q2, mul(q, q));
            xq = add(xq, mul(x(i), q));
        }
        const F n = set(float(Len)), zero = set(0.0f), one = set(1.0f);
        const F det = sub(mul(n, q2), mul(q1, q1));  // a whole number, exact
        const F scale = div(sub(mul(n, xq), mul(sum, q1)), max(det, one));
        const F offset = mul(sub(sum, mul(scale, q1)), set(1.0f / Len));
        // Without an offset, where the best one would be above zero or codes are all the same.
        const F alone = div(max(xq, zero), max(q2, one));
        const F flat = select_less(det, one, one, zero),
                above = select_less(zero, offset, one, flat);
        const F s = select_less(zero, above, alone, scale),
                o = select_less(zero, above, zero, offset);
        best.keep_better(add(mul(s, xq), mul(o, sum)), s, o);
    }

    void run(int steps) {
        for (int k = 0; k <= steps; ++k)
            consider(low, div(set(Top - 0.9f + 1.8f * float(k) / float(steps)), range));
        for (int k = 0; k < 2; ++k) consider(best.offset, inverse_above(best.scale, kTiny));
    }
};

// Scales and minima of a tile as blocks hold them, and what they stand for in each lane.
struct Nested {
    alignas(64) float sc[kLanes], m[kLanes];    // whole numbers
    alignas(64) float d[kLanes], dmin[kLanes];  // of the lane's block, in units of the tile
    half d_bits[kLanes], dmin_bits[kLanes];

    void set_scales(int lane, int lanes, float unit, float scale, float min) {
        const bool whole = lanes > 1;
        const half a = scale_bits(scale * unit, whole), b = scale_bits(min * unit, whole);
        const float per_unit = 1.0f / unit;
        for (int j = lane; j < lane + lanes; ++j) {
            d_bits[j] = a, dmin_bits[j] = b;
            d[j] = half_to_float(a) * per_unit, dmin[j] = half_to_float(b) * per_unit;
        }
    }
};

// Of the scales and minima around those of W lanes, the ones with the least squared error.
template <int Top, int Most, int Len>
void settle_affine(const Tile<Len>& tile, int lane, Nested& nested) {
    const F d = load(nested.d + lane), dmin = load(nested.dmin + lane), zero = set(0.0f);
    const F sc0 = load(nested.sc + lane), m0 = load(nested.m + lane);
    F least = set(3e38f), best_sc = zero, best_m = zero;
    for (int i = -1; i <= 1; ++i)
        for (int j = -1; j <= 1; ++j) {
            const F sc = clamp(add(sc0, set(float(i))), zero, set(float(Most)));
            const F m = clamp(add(m0, set(float(j))), zero, set(float(Most)));
            const F scale = mul(d, sc), min = mul(dmin, m), inv = inverse_above(scale, kTiny);
            F error = zero;
            for (int k = 0; k < Len; ++k) {
                const F x = add(load(tile.x[k] + lane), min);
                const F q = nearest(mul(x, inv), zero, set(float(Top)));
                const F miss = sub(x, mul(scale, q));
                error = add(error, mul(miss, miss));
            }
            best_sc = select_less(error, least, sc, best_sc);
            best_m = select_less(error, least, m, best_m);
            least = select_less(error, least, error, least);
        }
    store(nested.sc + lane, best_sc);
    store(nested.m + lane, best_m);
}

// Codes (Len, 16) for these scales and minima, and the sums that say how well they fit.
template <int Len>
struct Coded {
    alignas(64) int8_t q[Len][kLanes];
    alignas(64) float q1[kLanes], q2[kLanes], xq[kLanes], x1[kLanes];
};

template <int Top, int Len>
void code_affine(const Tile<Len>& tile, int lane, const Nested& nested, Coded<Len>& codes) {
    const F scale = mul(load(nested.d + lane), load(nested.sc + lane));
    const F min = mul(load(nested.dmin + lane), load(nested.m + lane));
    const F inv = inverse_above(scale, kTiny), zero = set(0.0f);
    F q1 = zero, q2 = zero, xq = zero, x1 = zero;
    for (int i = 0; i < Len; ++i) {
        const F x = load(tile.x[i] + lane);
        const I code = round(clamp(mul(add(x, min), inv), zero, set(float(Top))));
        const F q = to_float(code);
        store_bytes(codes.q[i] + lane, code);
        q1 = add(q1, q);
        q2 = add(q2, mul(q, q));
        xq = add(xq, mul(x, q));
        x1 = add(x1, x);
    }
    store(codes.q1 + lane, q1);
    store(codes.q2 + lane, q2);
    store(codes.xq + lane, xq);
    store(codes.x1 + lane, x1);
}

// The d and dmin of a block (`lanes` lanes from `lane`) that suit its codes best.
template <int Len>
void refit_affine(const Coded<Len>& codes, int lane, int lanes, float unit, Nested& nested) {
    double a = 0, b = 0, c = 0, p = 0, r = 0;
    for (int j = lane; j < lane + lanes; ++j) {
        const double sc = nested.sc[j], m = nested.m[j];
        a += sc * sc * codes.q2[j];
        b += sc * m * codes.q1[j];
        c += m * m * Len;
        p += sc * codes.xq[j];
        r += m * codes.x1[j];
    }
    const double det = a * c - b * b;
    double d = a > 0 ? p / a : 0.0, dmin = 0;
    if (det > 1e-6 * a * c) d = (p * c - r * b) / det, dmin = (p * b - r * a) / det;
    if (d > 0 && dmin >= 0) nested.set_scales(lane, lanes, unit, float(d), float(dmin));
}

// Largest scale is `Most`, largest minimum too; then both, and the codes, are chosen together.
template <int Top, int Most, int Steps, int Len>
void encode_affine(const Tile<Len>& tile, int lanes, Nested& nested, Coded<Len>& codes) {
    alignas(64) float scale[kLanes], offset[kLanes];
    for (int v = 0; v < kLanes; v += W) {
        AffineSearch<Top, Len> search(tile, v);
        search.run(Steps);
        store(scale + v, search.best.scale);
        store(offset + v, search.best.offset);
    }
    for (int lane = 0; lane < kLanes; lane += lanes) {
        float d = 0, dmin = 0;
        for (int j = lane; j < lane + lanes; ++j) {
            d = scale[j] > d ? scale[j] : d;
            dmin = -offset[j] > dmin ? -offset[j] : dmin;
        }
        nested.set_scales(lane, lanes, tile.unit[lane], d / Most, dmin / Most);
    }
    const F zero = set(0.0f), most = set(float(Most));
    for (int pass = 0; pass < 2; ++pass) {
        for (int v = 0; v < kLanes; v += W) {
            if (pass == 0) {
                const F id = inverse_above(load(nested.d + v), kTiny);
                const F im = inverse_above(load(nested.dmin + v), kTiny);
                store(nested.sc + v, nearest(mul(load(scale + v), id), zero, most));
                store(nested.m + v, nearest(mul(sub(zero, load(offset + v)), im), zero, most));
            }
            settle_affine<Top, Most>(tile, v, nested);
            code_affine<Top>(tile, v, nested, codes);
        }
        for (int lane = 0; lane < kLanes; lane += lanes)
            refit_affine(codes, lane, lanes, tile.unit[lane], nested);
    }
    for (int v = 0; v < kLanes; v += W) code_affine<Top>(tile, v, nested, codes);
}

// ---- w = scale * q, q in -Half .. Half - 1, or a codebook ----

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
