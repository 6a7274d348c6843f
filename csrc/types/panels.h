// How weights lie in memory while they are multiplied: panels of 16 rows, cut into groups of 128
// inputs. Eleven quantized types (table.h) are one family of layouts with a few choices.
//
//   panel                    16 consecutive rows (outputs) of a matrix; missing rows are zero
//   strip                    two panels, 32 rows, multiplied together: their groups lie in turn
//   group                    128 inputs of a panel, one struct, a multiple of 64 bytes
//   code                     unsigned: 4, 5, 6 or 8 bits; weight = scale * (code - zero) [+ min]
//   sub-block                16 or 32 inputs that share a scale: 8 or 4 of them in a group
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
// For int16 scales (int16_scales.h) two neighboring sub-blocks are interleaved, so that one
// multiply-add takes both sums: lane 4 a + 2 b + s of vector h holds row 4 a + 2 h + b, sub-block
// s. Four inputs of both sub-blocks are a step: nibble vector 2 k + h holds a step in the low
// nibbles, and the one half a sub-block on in the high ones.
//
// A panel lies in the order in which one token's product touches it, scales first: the processor
// then sees one stream and fetches ahead by itself. Share of 52 GB/s, one token with Q4_0, two
// threads on Zen 4: 0.84 with scales behind the codes and software prefetch, 0.92 to 0.94 so.
//
// Scales are f16, one for each sub-block (Plain: Q4_0 and its kin); or small integers, one for each
// sub-block, times one f16 for the group (Nested: the K types). Both give the scale of the file
// exactly, in f32. With codes of 4 bits they become int16, and are rounded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

#include "types/blocks.h"

namespace starcoder {

inline constexpr int kRows = 16;              // rows in a panel
inline constexpr int kStripRows = 2 * kRows;  // rows in a strip
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
struct Int16Scales {  // of each two sub-blocks, side by side: the two halves of one lane
    int16_t scale[Subs / 2][kRows][2];
};
template <int Subs>
struct Int16Scales<Subs, true> {
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

enum class ScaleKind { Plain, Nested };

// The choices of table.h, in its order.
template <int Bits_, int Subs_, ScaleKind Kind, bool Min_, int Zero_, bool Codebook_>
struct alignas(64) Panel {
    static constexpr int Bits = Bits_;  // of a code
    static constexpr int Subs = Subs_;  // sub-blocks in a group
    static constexpr bool Nested = Kind == ScaleKind::Nested;
    static constexpr bool Min = Min_;
    static constexpr int Zero = Zero_;
    static constexpr bool Codebook = Codebook_;

    // Scales are multiplied as int16: see int16_scales.h. The code that dot products count from
    // then lies in the middle of the codes.
    static constexpr bool Int16 = Bits == 4 && !Codebook;
    static constexpr int Middle = !Int16 || !Min ? Zero : Subs == 8 ? 2 : 8;  // Q2_K ends at 3

    static constexpr int Steps = kGroup / Subs / 4;  // vectors of 4 inputs in a sub-block

    using Plain = std::conditional_t<Int16, Int16Scales<Subs, Min>, PlainScales<Subs, Min>>;
    using Scales = std::conditional_t<Nested, NestedScales<Subs, Min>, Plain>;

    alignas(64) Scales scales;
    alignas(64) Codes<Bits> blocks[kBlocks];
};

// Where a row is in the vectors of types with int16 scales: which of two, and its lane, of the
// first sub-block.
constexpr int interleaved_vector(int row) { return row / 2 % 2; }
constexpr int interleaved_lane(int row) { return row / 4 * 4 + row % 2 * 2; }

#define X(name, number, block, bits, subs, kind, min, zero, codebook) \
    using Panel##name = Panel<bits, subs, ScaleKind::kind, min, zero, codebook>;
STARCODER_QUANTIZED_TYPES(X)
#undef X

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

// Float weights (F32, F16, BF16): a group is [input][row] of the type itself, with 32 rows: both
// panels of a strip line by line, since they are one stream too. BF16 keeps pairs of inputs
// together, [input / 2][row][input % 2], as bf16 dot products take them.

// A strip's group with its codes and scales spread out to bytes and words: what the loops of many
// tokens read. Vectors of a sub-block are consecutive, and each is 128 bytes: the 16 rows of one
// panel, then of the other.
struct alignas(64) UnpackedTile {
    uint8_t code[kBlocks * 8][2 * 64];  // [input / 4][4 row + input % 4]; with int16 scales
                                        // [2 step + panel][two vectors of it]
    union {
        float scale[8][kStripRows];      // [sub-block][row]
        int32_t scale16[4][kStripRows];  // [sub-block / 2][row], two int16 each
    };
    union {
        float min[8][kStripRows];
        int32_t min16[4][kStripRows];
    };
};

// ---- from a type to what is known of it when the core is compiled ----

template <Type>
struct Quantized;
#define X(name, number, block, ...)               \
    template <>                                   \
    struct Quantized<Type::name> {                \
        using Block = Block##name;                \
        using Panel = Panel##name;                \
        static constexpr Type kType = Type::name; \
        static constexpr int kBlockLen = block;   \
    };
STARCODER_QUANTIZED_TYPES(X)
#undef X

template <Type Kind>
struct Float;
#define X(name, number, bits)                     \
    template <>                                   \
    struct Float<Type::name> {                    \
        using Bits = bits;                        \
        static constexpr Type kType = Type::name; \
    };
STARCODER_FLOAT_TYPES(X)
#undef X

// Calls f(Family<type>()), Family being Quantized or Float, for a type that it has.
template <template <Type> class Family, class F>
auto visit(Type type, F&& f) {
    switch (type) {
#define X(name, ...)                                                                            \
    case Type::name:                                                                            \
        if constexpr (requires { sizeof(Family<Type::name>); }) return f(Family<Type::name>()); \
        break;
        STARCODER_FLOAT_TYPES(X)
        STARCODER_QUANTIZED_TYPES(X)
#undef X
    }
    std::abort();
}

}  // namespace starcoder
