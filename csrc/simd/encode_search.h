// Scales, minima and codes of least squared error, for the types that leave them free: Q2_K to Q6_K
// and IQ4_NL. Part of loops.h.
//
//     w = scale * q + offset      q: the value of the code; offset: 0, or minus the minimum
//
// First each group alone: some scales to start from, and for the codes that each gives, the scale
// and offset that fit them best. Then the groups of a block together: the largest scale sets the
// unit, all become whole numbers of it, the numbers next to them are tried, and the unit is fitted
// again to the codes of all.
//
// There is one search; what types differ in is their `Fit`, a row of the table in encode.h.
#pragma once

namespace starcoder {
namespace {

// ---- what a type leaves free ----

template <int Low, int High>
struct Even {  // evenly spaced values
    static constexpr int kLow = Low, kHigh = High;
    static constexpr float kReach = 0.9f;  // how far beside an end the largest weight is tried
    static F value(F x) { return nearest(x, set(kLow), set(kHigh)); }
    static I code(F x) { return add_int(round(clamp(x, set(kLow), set(kHigh))), set_int(-kLow)); }
};

struct Codebook {  // IQ4_NL's values
    static constexpr int kLow = -127, kHigh = 113;
    static constexpr float kReach = 8.0f;
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

// Blocks of `Groups` groups of `Len` weights. A group's scale is a whole number, `Least` to `Most`,
// of the block's unit, and so is its minimum; of one group there is nothing but the unit. Values
// from 0 up need a minimum, values of both signs have none.
template <int Groups, int Len, class Of, int Least, int Most, int Starts>
struct GroupFit {
    using Values = Of;
    static constexpr int kGroups = Groups, kLen = Len, kLeast = Least, kMost = Most;
    static constexpr int kLargest = Least < 0 ? Least : Most;  // number of the largest scale
    static constexpr int kStarts = Starts;                     // scales to start from
    static constexpr bool kHasMin = Values::kLow == 0;

    // Beside a minimum no scale is negative.
    static F inverse(F scale) { return kHasMin ? positive_inverse(scale) : signed_inverse(scale); }
    static bool larger(float a, float b) { return kHasMin ? a > b : magnitude(a) > magnitude(b); }
};

template <class Fit>
using TileOf = Tile<Fit::kLen>;

// ---- a group alone: W of them at once, from lane `lane` on ----

// Sums over the weights x of a group, and over the values q that (x - offset) * inv is nearest to.
struct Sums {
    F x, q, qq, xq;
};

template <class Fit>
Sums sums_of(const TileOf<Fit>& tile, int lane, F offset, F inv) {
    Sums sums = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
    for (int i = 0; i < Fit::kLen; ++i) {
        const F x = load(tile.x[i] + lane), q = Fit::Values::value(mul(sub(x, offset), inv));
        sums.x = add(sums.x, x);
        sums.q = add(sums.q, q);
        sums.qq = add(sums.qq, mul(q, q));
        sums.xq = add(sums.xq, mul(x, q));
    }
    return sums;
}

// The best scale and offset so far, by how much squared error they take away.
struct Best {
    F gain, scale, offset;

    void keep_better(F gain2, F scale2, F offset2) {
        scale = select_less(gain, gain2, scale2, scale);
        offset = select_less(gain, gain2, offset2, offset);
        gain = select_less(gain, gain2, gain2, gain);
    }
};

// The codes start at the least weight, and the greatest is tried near the last of them.
template <class Fit>
Best search_with_min(const TileOf<Fit>& tile, int lane) {
    using Values = typename Fit::Values;
    const F zero = set(0.0f), one = set(1.0f), n = set(Fit::kLen), per_n = set(1.0f / Fit::kLen);
    F sum = zero, low = zero, high = load(tile.x[0] + lane);
    for (int i = 0; i < Fit::kLen; ++i) {
        const F x = load(tile.x[i] + lane);
        sum = add(sum, x);
        low = min(low, x);
        high = max(high, x);
    }
    const F range = max(sub(high, low), set(kTiny));
    const F mean = min(mul(sum, per_n), zero);  // all codes 0
    Best best = {mul(mean, sum), zero, mean};
    const auto consider = [&](F offset, F inv) {
        const Sums of = sums_of<Fit>(tile, lane, offset, inv);
        const F det = sub(mul(n, of.qq), mul(of.q, of.q));  // a whole number, exact
        const F scale = div(sub(mul(n, of.xq), mul(sum, of.q)), max(det, one));
        const F rest = mul(sub(sum, mul(scale, of.q)), per_n);
        // Without an offset, where the best one would be above zero or codes are all the same.
        const F alone = div(max(of.xq, zero), max(of.qq, one));
        const F flat = select_less(det, one, one, zero);
        const F above = select_less(zero, rest, one, flat);
        const F s = select_less(zero, above, alone, scale);
        const F o = select_less(zero, above, zero, rest);
        best.keep_better(add(mul(s, of.xq), mul(o, sum)), s, o);
    };
    for (int k = 0; k <= Fit::kStarts; ++k) {
        const float past = 2.0f * Values::kReach * float(k) / float(Fit::kStarts);
        consider(low, div(set(Values::kHigh - Values::kReach + past), range));
    }
    for (int k = 0; k < 2; ++k) consider(best.offset, Fit::inverse(best.scale));
    return best;
}

// The largest weight is tried near the lowest value, and near the highest.
template <class Fit>
Best search_without_min(const TileOf<Fit>& tile, int lane) {
    using Values = typename Fit::Values;
    const F zero = set(0.0f);
    F top = zero;
    for (int i = 0; i < Fit::kLen; ++i) {
        const F x = load(tile.x[i] + lane);
        top = select_less(abs(top), abs(x), x, top);
    }
    const F per_top = Fit::inverse(top);
    Best best = {zero, zero, zero};
    const auto consider = [&](F inv) {
        const Sums of = sums_of<Fit>(tile, lane, zero, inv);
        const F scale = div(of.xq, max(of.qq, set(1.0f)));
        best.keep_better(mul(scale, of.xq), scale, zero);
    };
    for (int k = 0; k <= Fit::kStarts; ++k) {
        const float off = Values::kReach * (2.0f * float(k) / float(Fit::kStarts) - 1.0f);
        consider(mul(set(Values::kLow + off), per_top));
        consider(mul(set(Values::kHigh + off), per_top));
    }
    for (int k = 0; k < 2; ++k) consider(Fit::inverse(best.scale));
    return best;
}

// ---- the groups of a block together ----

// The scale and minimum of each group alone, as the nearest whole numbers of the block's units.
template <class Fit>
void find_scales(const TileOf<Fit>& tile, Scales& scales) {
    alignas(64) float scale[kLanes], offset[kLanes];
    for (int v = 0; v < kLanes; v += W) {
        Best best;
        if constexpr (Fit::kHasMin)
            best = search_with_min<Fit>(tile, v);
        else
            best = search_without_min<Fit>(tile, v);
        store(scale + v, best.scale);
        store(offset + v, best.offset);
    }
    for (int lane = 0; lane < kLanes; lane += Fit::kGroups) {
        float top = 0, low = 0;
        for (int j = lane; j < lane + Fit::kGroups; ++j) {
            top = Fit::larger(scale[j], top) ? scale[j] : top;
            if (Fit::kHasMin) low = offset[j] < low ? offset[j] : low;
        }
        scales.set_units(lane, Fit::kGroups, tile.unit[lane], top / Fit::kLargest,
                         -low / Fit::kMost);
    }
    const F least = set(Fit::kLeast), most = set(Fit::kMost), zero = set(0.0f);
    for (int v = 0; v < kLanes; v += W) {
        const F per_d = Fit::inverse(load(scales.d + v));
        const F per_dmin = positive_inverse(load(scales.dmin + v));
        store(scales.sc + v, nearest(mul(load(scale + v), per_d), least, most));
        store(scales.m + v, nearest(mul(sub(zero, load(offset + v)), per_dmin), zero, most));
    }
}

// What codes stand for under these scales: w = scale * q + offset.
template <class Fit>
struct Line {
    F scale, offset, inv;

    Line(F d, F sc, F dmin, F m)
        : scale(mul(d, sc)),
          offset(Fit::kHasMin ? sub(set(0.0f), mul(dmin, m)) : set(0.0f)),
          inv(Fit::inverse(scale)) {}
    Line(const Scales& of, int lane)
        : Line(load(of.d + lane), load(of.sc + lane), load(of.dmin + lane), load(of.m + lane)) {}
};

// Of the whole numbers next to those of W lanes, the ones with the least squared error.
template <class Fit>
void try_neighbors(const TileOf<Fit>& tile, int lane, Scales& scales) {
    const F d = load(scales.d + lane), dmin = load(scales.dmin + lane), zero = set(0.0f);
    const F sc0 = load(scales.sc + lane), m0 = load(scales.m + lane);
    F least = set(3e38f), best_sc = zero, best_m = zero;
    for (int i = -1; i <= 1; ++i)
        for (int j = -Fit::kHasMin; j <= Fit::kHasMin; ++j) {
            const F sc = clamp(add(sc0, set(float(i))), set(Fit::kLeast), set(Fit::kMost));
            const F m = clamp(add(m0, set(float(j))), zero, set(Fit::kMost));
            const Line<Fit> line(d, sc, dmin, m);
            F error = zero;
            for (int k = 0; k < Fit::kLen; ++k) {
                const F x = sub(load(tile.x[k] + lane), line.offset);
                const F miss = sub(x, mul(line.scale, Fit::Values::value(mul(x, line.inv))));
                error = add(error, mul(miss, miss));
            }
            best_sc = select_less(error, least, sc, best_sc);
            best_m = select_less(error, least, m, best_m);
            least = select_less(error, least, error, least);
        }
    store(scales.sc + lane, best_sc);
    store(scales.m + lane, best_m);
}

// The units d and dmin that suit the codes of each block best.
template <class Fit>
void refit_units(const TileOf<Fit>& tile, Scales& scales) {
    alignas(64) float x[kLanes], q[kLanes], qq[kLanes], xq[kLanes];
    for (int v = 0; v < kLanes; v += W) {
        const Line<Fit> line(scales, v);
        const Sums sums = sums_of<Fit>(tile, v, line.offset, line.inv);
        store(x + v, sums.x);
        store(q + v, sums.q);
        store(qq + v, sums.qq);
        store(xq + v, sums.xq);
    }
    for (int lane = 0; lane < kLanes; lane += Fit::kGroups) {
        double a = 0, b = 0, c = 0, p = 0, r = 0;
        for (int j = lane; j < lane + Fit::kGroups; ++j) {
            const double sc = scales.sc[j], m = scales.m[j];
            a += sc * sc * qq[j];
            p += sc * xq[j];
            if (!Fit::kHasMin) continue;
            b += sc * m * q[j];
            c += m * m * Fit::kLen;
            r += m * x[j];
        }
        const double det = a * c - b * b;
        double d = a > 0 ? p / a : 0.0, dmin = 0;
        if (det > 1e-6 * a * c) d = (p * c - r * b) / det, dmin = (p * b - r * a) / det;
        if (Fit::kHasMin ? d > 0 && dmin >= 0 : a > 0)
            scales.set_units(lane, Fit::kGroups, tile.unit[lane], float(d), float(dmin));
    }
}

template <class Fit>
void search(const TileOf<Fit>& tile, Scales& scales, Codes<Fit::kLen>& codes) {
    find_scales<Fit>(tile, scales);
    for (int pass = 0; pass < (Fit::kGroups > 1 ? 2 : 0); ++pass) {
        for (int v = 0; v < kLanes; v += W) try_neighbors<Fit>(tile, v, scales);
        refit_units<Fit>(tile, scales);
    }
    for (int v = 0; v < kLanes; v += W) {
        const Line<Fit> line(scales, v);
        for (int i = 0; i < Fit::kLen; ++i) {
            const F at = mul(sub(load(tile.x[i] + v), line.offset), line.inv);
            store_bytes(codes.q[i] + v, Fit::Values::code(at));
        }
    }
}

}  // namespace
}  // namespace starcoder
