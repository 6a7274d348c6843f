// The scales, minima and codes of least squared error: w = scale * q + offset, q in 0 .. Top,
// offset <= 0, for Q2_K, Q4_K and Q5_K. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

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

}  // namespace
}  // namespace starcoder
