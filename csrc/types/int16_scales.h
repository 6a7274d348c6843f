// Scales as whole numbers: how those of 4-bit types are rounded when they are packed.
//
// A dot product of 32 codes, counted from the middle one, and 8-bit activations is 32 * 8 * 127 =
// 32512 at most and fits into 16 bits. Two of them share a lane, and CPUs have an instruction that
// multiplies both by numbers of 16 bits and adds them up, in place of a conversion and a
// multiply-add for each. So the scales and minima of a row become whole numbers of a unit, a
// power of two.
//
// A scale has 14 bits, beside minima 13: exact if it is at least 1/8 (1/4) of the row's largest,
// and otherwise within 2^-14 (2^-13) of that. Those of K types, products of f16 and 6 bits, are
// always rounded so. A minimum counts from the middle code too, 0 or so in most blocks, and has up
// to 16 bits; where one is above 3.8 times the largest scale, it decides the unit. Sums of a group
// stay below 2^31: 4 * 32512 * 16384; beside minima 4 * (32512 * 8192 + 4064 * 32768).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd/isa.h"
#include "types/decode.h"

namespace starcoder {

template <class P>
constexpr float kLargest = P::Min ? 4096 : 8192;  // in units; or up to twice that

inline bool is_whole(Type type) {
    if (is_float(type)) return false;
    return dispatch(type, [](auto, auto p) { return decltype(p)::type::Whole; });
}

// d, the f16 above the scales of a K type, in units: exact, or too small to matter. Where it would
// be infinite, there are only zeros under it.
inline half in_units(half d, float unit) {
    return float_to_half(std::clamp(half_to_float(d) / unit, -65504.0f, 65504.0f));
}

// The units of up to 16 rows; and the numbers, where each scale is one of its own (row, block).
// Other types have none of this.
template <class Block, class P>
struct WholeRows {
    float unit[kRows];  // 1 where there is no row
    std::vector<int16_t> scale, min;

    WholeRows(const Block* rows, int64_t n_rows, int64_t n_cols) {
        std::fill_n(unit, kRows, 1.0f);
        if constexpr (P::Whole && P::Nested)
            for (int64_t r = 0; r < n_rows; ++r)
                unit[r] = nested_unit(rows + r * n_cols / 256, n_cols);
        else if constexpr (P::Whole)
            round_plain(rows, n_rows, n_cols / 32);
    }

  private:
    // Not finite: NaN, so that every result shows it.
    static float unit_of(float top) {
        const auto bits = __builtin_bit_cast(uint32_t, top);
        if (bits >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
        return top > 0 ? __builtin_bit_cast(float, bits & 0x7f800000) / kLargest<P> : 1.0f;
    }

    // What of a sub must stay below twice kLargest. With 0.26, a minimum counted from the middle is
    // at most 31507 units; with 0.13, no f16 of a K type overflows.
    static float top_of(float scale, float min) {
        if constexpr (!P::Min) return std::fabs(scale);
        const float middle = std::fabs(scale * P::Middle + min);
        return larger(std::fabs(scale), larger(0.26f * middle, 0.13f * std::fabs(min)));
    }

    static float larger(float a, float b) { return a >= b || a != a ? a : b; }  // NaN if one is

    static float nested_unit(const Block* row, int64_t n_cols) {
        float top = 0;
        RowGroup group;
        for (int64_t g = 0; g < n_cols / kGroup; ++g) {
            split_scales(row, g, group);
            const float d = half_to_float(group.d);
            const float dmin = P::Min ? half_to_float(group.dmin) : 0.0f;
            for (int s = 0; s < P::Subs; ++s)
                top = larger(top, top_of(d * group.sc[s], P::Min ? -dmin * group.m[s] : 0.0f));
        }
        return unit_of(top);
    }

    void round_plain(const Block* rows, int64_t n_rows, int64_t n) {
        std::vector<half> halves(n);
        std::vector<float> scales(n), minima(n);
        scale.resize(n_rows * n);
        if constexpr (P::Min) min.resize(n_rows * n);
        for (int64_t r = 0; r < n_rows; ++r, rows += n) {
            for (int64_t b = 0; b < n; ++b) halves[b] = rows[b].d;
            isa().widen_half(halves.data(), n, scales.data());
            if constexpr (P::Min) {
                for (int64_t b = 0; b < n; ++b) halves[b] = rows[b].m;
                isa().widen_half(halves.data(), n, minima.data());
            }
            float top = 0;
            for (int64_t b = 0; b < n; ++b) top = larger(top, top_of(scales[b], minima[b]));
            unit[r] = unit_of(top);
            if (unit[r] != unit[r]) continue;
            const float units = 1 / unit[r];
            for (int64_t b = 0; b < n; ++b) {
                scale[r * n + b] = rounded(scales[b] * units);
                if constexpr (P::Min)
                    min[r * n + b] = rounded((scales[b] * P::Middle + minima[b]) * units);
            }
        }
    }

    // To nearest even, for |x| < 2^22: the sum has no bits after the point.
    static int16_t rounded(float x) {
        constexpr float kShift = 0x1.8p23f;
        return static_cast<int16_t>((x + kShift) - kShift);
    }
};

}  // namespace starcoder
