// Int16 scales: how the scales of 4-bit types are rounded when they are packed.
//
// A dot product of 32 codes, counted from the middle one, and 8-bit activations is 32 * 8 * 127 =
// 32512 at most and fits in 16 bits. Two of them share a lane, and CPUs have an instruction that
// multiplies both by numbers of 16 bits and adds them up, in place of a conversion and a
// multiply-add for each. So the scales and minima of a row become whole numbers of a unit, a power
// of two; the unit is multiplied once, in the epilogue.
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

// The block scale d of a K type, divided by the row's unit. Exact unless it underflows; clamped at
// 65504, which happens only where all sub-scales are 0.
inline half in_units(half d, float unit) {
    return float_to_half(std::clamp(half_to_float(d) / unit, -65504.0f, 65504.0f));
}

// The units of up to 16 rows; and the int16 scales, where each is a number of its own (row, block).
// Other types have none of this.
template <Type Kind>
struct Int16RowScales {
    using Block = typename Quantized<Kind>::Block;
    using Panel = typename Quantized<Kind>::Panel;

    float unit[kRows];  // 1 where there is no row
    std::vector<int16_t> scale, min;

    Int16RowScales(const Block* rows, int64_t n_rows, int64_t n_cols) {
        std::fill_n(unit, kRows, 1.0f);
        if constexpr (Panel::Int16 && Panel::Nested)
            for (int64_t r = 0; r < n_rows; ++r)
                unit[r] = nested_unit(rows + r * n_cols / 256, n_cols);
        else if constexpr (Panel::Int16)
            round_plain(rows, n_rows, n_cols / 32);
    }

  private:
    static constexpr float kLargest = Panel::Min ? 4096 : 8192;  // in units; or up to twice that

    // Not finite: NaN, so that every result shows it.
    static float unit_of(float top) {
        const auto bits = __builtin_bit_cast(uint32_t, top);
        if (bits >= 0x7f800000) return std::numeric_limits<float>::quiet_NaN();
        return top > 0 ? __builtin_bit_cast(float, bits & 0x7f800000) / kLargest : 1.0f;
    }

    // What of a sub-block must stay below twice kLargest. With 0.26, a minimum counted from the
    // middle is at most 31507 units; with 0.13, no f16 of a K type overflows.
    static float top_of(float scale, float min) {
        if constexpr (!Panel::Min) return std::fabs(scale);
        const float middle = std::fabs(scale * Panel::Middle + min);
        return larger(std::fabs(scale), larger(0.26f * middle, 0.13f * std::fabs(min)));
    }

    static float larger(float a, float b) { return a >= b || a != a ? a : b; }  // NaN if one is

    static float nested_unit(const Block* row, int64_t n_cols) {
        float top = 0;
        RowGroup group;
        for (int64_t g = 0; g < n_cols / kGroup; ++g) {
            split_scales<Kind>(row, g, group);
            const float d = half_to_float(group.d);
            const float dmin = Panel::Min ? half_to_float(group.dmin) : 0.0f;
            for (int s = 0; s < Panel::Subs; ++s)
                top = larger(top, top_of(d * group.sc[s], Panel::Min ? -dmin * group.m[s] : 0.0f));
        }
        return unit_of(top);
    }

    void round_plain(const Block* rows, int64_t n_rows, int64_t n) {
        const auto len = static_cast<size_t>(n), all = static_cast<size_t>(n_rows * n);
        std::vector<half> halves(len);
        std::vector<float> scales(len), minima(len);
        scale.resize(all);
        if constexpr (Panel::Min) min.resize(all);
        for (int64_t r = 0; r < n_rows; ++r, rows += n) {
            for (size_t b = 0; b < len; ++b) halves[b] = rows[b].d;
            isa().widen_half(halves.data(), n, scales.data());
            if constexpr (Panel::Min) {
                for (size_t b = 0; b < len; ++b) halves[b] = rows[b].m;
                isa().widen_half(halves.data(), n, minima.data());
            }
            float top = 0;
            for (size_t b = 0; b < len; ++b) top = larger(top, top_of(scales[b], minima[b]));
            unit[r] = unit_of(top);
            if (unit[r] != unit[r]) continue;
            const float units = 1 / unit[r];
            int16_t* const to = scale.data() + r * n;
            for (size_t b = 0; b < len; ++b) to[b] = rounded(scales[b] * units);
            if constexpr (Panel::Min)
                for (size_t b = 0; b < len; ++b)
                    min[static_cast<size_t>(r) * len + b] =
                        rounded((scales[b] * Panel::Middle + minima[b]) * units);
        }
    }

    // To nearest even, for |x| < 2^22: the sum has no bits after the point.
    static int16_t rounded(float x) {
        constexpr float kShift = 0x1.8p23f;
        return static_cast<int16_t>((x + kShift) - kShift);
    }
};

}  // namespace starcoder
