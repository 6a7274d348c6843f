// How weights lie in memory while they are multiplied: panels of 16 rows, cut into groups of 128
// inputs. Eleven quantized types become one family of layouts with three choices.
//
//   panel                    16 consecutive rows (outputs) of a matrix; missing rows are zero.
//                            Two are stored group by group in turn, and multiplied together
//   group                    128 inputs of a panel, one struct, a multiple of 64 bytes
//   codes                    unsigned: 4, 5, 6 or 8 bits; value = scale * (code - zero) [+ min]
//   sub                      16 or 32 inputs that share a scale: 8 or 4 subs in a group
//
// A vector of 64 bytes holds 4 consecutive inputs of 16 rows: byte 4 r + i is row r, input i. That
// is what a four-way dot product instruction takes, one lane a row, so no kernel ever shuffles.
//
// Codes of 32 inputs (a "block") are 8 such vectors, j = 0..7 for inputs 4 j .. 4 j + 3:
//   nibble[j], j < 4          low nibble: vector j, high nibble: vector j + 4
//   high[...]                 5 bits: one vector, bit j of a byte is bit 4 of vector j's code
//                             6 bits: two vectors, bits 2 (j % 4) of [j / 4] are bits 4, 5
//   byte[j][h], j < 4         8 bits: vector j + 4 h
//
// With whole scales (whole.h) the lanes of a vector are of two subs in turn, and of every other
// two rows: lane 4 a + 2 b + s of vector h is row 4 a + 2 h + b, sub s of a pair. Four inputs of
// both subs are a step: nibble vector 2 k + h holds a step in the low nibbles, and half a sub on,
// another in the high ones.
//
// All of it lies in the order in which one token's product touches it, scales first. Then the
// processor sees one stream and fetches ahead by itself: one token with Q4_0, two threads on Zen 4,
// of 52 GB/s: 0.84 with scales behind the codes and lines asked for ahead, 0.92 to 0.94 so.
//
// Scales are f16, one a sub ("plain": Q4_0 and its kin); or small integers, one a sub, times one
// f16 a group ("nested": the K types). Both give the scale of the file exactly, in f32; with codes
// of 4 bits they become whole numbers of a unit of the row, and are rounded: whole.h says how far.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "types/blocks.h"

namespace starcoder {

inline constexpr int kRows = 16;              // rows in a panel
inline constexpr int kStripRows = 2 * kRows;  // of two panels, which are multiplied together
inline constexpr int kGroup = 128;  // inputs in a group, and in one scale of the activations
inline constexpr int kBlocks = 4;   // blocks of 32 inputs in a group

// Codes of one block.
template <int Bits>
struct Codes {
    uint8_t high[Bits - 4][64];
    uint8_t nibble[4][64];
};
template <>
struct Codes<4> {
    uint8_t nibble[4][64];
};
template <>
struct Codes<8> {
    uint8_t byte[4][2][64];
};

// Scales of one group: `Subs` for each row, with or without minima.
template <int Subs, bool Min>
struct PlainScales {
    half scale[Subs][kRows];
};
template <int Subs>
struct PlainScales<Subs, true> {
    half scale[Subs][kRows];
    half min[Subs][kRows];
};
template <int Subs, bool Min>
struct WholeScales {  // of each two subs, side by side: the words of one lane
    int16_t scale[Subs / 2][kRows][2];
};
template <int Subs>
struct WholeScales<Subs, true> {
    int16_t scale[Subs / 2][kRows][2];
    int16_t min[Subs / 2][kRows][2];
};
template <int Subs, bool Min>
struct NestedScales {  // scale = d * sc
    int8_t sc[Subs][kRows];
    half d[kRows];
};
template <int Subs>
struct NestedScales<Subs, true> {  // min = -dmin * m
    int8_t sc[Subs][kRows];
    int8_t m[Subs][kRows];
    half d[kRows];
    half dmin[kRows];
};

template <int Bits_, int Subs_, bool Nested_, bool Min_, int Zero_, bool Codebook_ = false>
struct alignas(64) Panel {
    static constexpr int Bits = Bits_;           // of a code
    static constexpr int Subs = Subs_;           // scales in a group, a row
    static constexpr bool Nested = Nested_;      // integer scales under one f16
    static constexpr bool Min = Min_;            // with minima
    static constexpr int Zero = Zero_;           // the code that stands for 0
    static constexpr bool Codebook = Codebook_;  // the nibble indexes IQ4_NL's values

    // Scales are multiplied as whole numbers: see whole.h. The code that dot products count from
    // then lies in the middle.
    static constexpr bool Whole = Bits == 4 && !Codebook;
    static constexpr int Middle = !Whole || !Min ? Zero : Subs == 8 ? 2 : 8;  // Q2_K ends at 3

    static constexpr int Steps = kGroup / Subs / 4;

    using Plain = std::conditional_t<Whole, WholeScales<Subs, Min>, PlainScales<Subs, Min>>;
    using Scales = std::conditional_t<Nested, NestedScales<Subs, Min>, Plain>;

    alignas(64) Scales scales;
    alignas(64) Codes<Bits> blocks[kBlocks];
};

// Where a row is in the vectors of types with whole scales: which of two, and its lane, of the
// first sub.
constexpr int pair_half(int row) { return row / 2 % 2; }
constexpr int pair_lane(int row) { return row / 4 * 4 + row % 2 * 2; }

// What each type of file is kept as. Bits a weight: in the file, here.
using PanelQ4_0 = Panel<4, 4, false, false, 8>;            // 4.5     4.5
using PanelQ4_1 = Panel<4, 4, false, true, 0>;             // 5       5
using PanelQ5_0 = Panel<5, 4, false, false, 16>;           // 5.5     5.5
using PanelQ5_1 = Panel<5, 4, false, true, 0>;             // 6       6
using PanelQ8_0 = Panel<8, 4, false, false, 128>;          // 8.5     8.5
using PanelIQ4_NL = Panel<4, 4, false, false, 128, true>;  // 4.5     4.5
using PanelQ2_K = Panel<4, 8, true, true, 0>;              // 2.625   5.25
using PanelQ3_K = Panel<4, 8, true, false, 4>;             // 3.4375  4.75
using PanelQ4_K = Panel<4, 4, true, true, 0>;              // 4.5     4.75
using PanelQ5_K = Panel<5, 4, true, true, 0>;              // 5.5     5.75
using PanelQ6_K = Panel<6, 8, true, false, 32>;            // 6.5625  6.75

static_assert(sizeof(PanelQ4_0) == 1152);
static_assert(sizeof(PanelQ4_1) == 1280);
static_assert(sizeof(PanelQ5_0) == 1408);
static_assert(sizeof(PanelQ5_1) == 1536);
static_assert(sizeof(PanelQ8_0) == 2176);
static_assert(sizeof(PanelIQ4_NL) == 1152);
static_assert(sizeof(PanelQ2_K) == 1344);
static_assert(sizeof(PanelQ3_K) == 1216);
static_assert(sizeof(PanelQ4_K) == 1216);
static_assert(sizeof(PanelQ5_K) == 1472);
static_assert(sizeof(PanelQ6_K) == 1728);

// Two panels of one group, codes and scales spread out: what the multiplying loops read. Vectors
// of a sub are consecutive, and each is 128 bytes: the 16 rows of one panel, then of the other.
struct alignas(64) Strip {
    uint8_t code[kBlocks * 8][2 * 64];  // [input / 4][4 row + input % 4]; with whole scales
                                        // [2 step + panel][two vectors of it]
    union {
        float scale[8][kStripRows];          // [sub][row]
        int32_t whole_scale[4][kStripRows];  // [sub / 2][row], two words each
    };
    union {
        float min[8][kStripRows];
        int32_t whole_min[4][kStripRows];
    };
};

// Float weights (F32, F16, BF16): a group is [input][row] of the type itself, with 32 rows: both
// panels line by line, since they are one stream too. BF16 keeps pairs of inputs together,
// [input / 2][row][input % 2], as bf16 dot products take them.

// Bytes of a matrix (n_rows, n_cols) as panels: whole pairs of them, and whole groups (pack.cpp).
int64_t packed_bytes(Type type, int64_t n_rows, int64_t n_cols);

}  // namespace starcoder
