// Codes and scales of a panel as vectors: part of loops.h.
#pragma once

namespace starcoder {
namespace {

// Codes of lanes i / 4 .. of vectors J and J + 4 of block b, for J < 4.
template <class P, int J>
void read_codes(const P& panel, int b, int i, B& low, B& high) {
    if constexpr (P::Bits == 8) {
        low = load_bytes(panel.blocks[b].byte[J][0] + i);
        high = load_bytes(panel.blocks[b].byte[J][1] + i);
        if constexpr (kSignedBytes) low = flip_signs(low), high = flip_signs(high);
    } else {
        const B nibbles = load_bytes(panel.blocks[b].nibble[J] + i);
        low = low_nibbles(nibbles);
        high = high_nibbles(nibbles);
    }
    if constexpr (P::Codebook) low = lookup(low), high = lookup(high);
    if constexpr (P::Bits == 5) {
        const B bits = load_bytes(panel.blocks[b].high[0] + i);
        low = either(low, to_bit_4<J, 0x10>(bits));
        high = either(high, to_bit_4<J + 4, 0x10>(bits));
    }
    if constexpr (P::Bits == 6) {
        low = either(low, to_bit_4<2 * J, 0x30>(load_bytes(panel.blocks[b].high[0] + i)));
        high = either(high, to_bit_4<2 * J, 0x30>(load_bytes(panel.blocks[b].high[1] + i)));
    }
}

// Scales of rows r .. r + W in sub-block s, and minima (added, not subtracted).
template <class P>
F read_scale(const P& panel, int s, int r) {
    if constexpr (P::Nested)
        return mul(load_half(panel.scales.d + r), to_float(load_int8(panel.scales.sc[s] + r)));
    else
        return load_half(panel.scales.scale[s] + r);
}
template <class P>
F read_min(const P& panel, int s, int r) {
    if constexpr (!P::Min)
        return set(0.0f);
    else if constexpr (P::Nested)
        return sub(set(0.0f), mul(load_half(panel.scales.dmin + r),
                                  to_float(load_int8(panel.scales.m[s] + r))));
    else
        return load_half(panel.scales.min[s] + r);
}

// Int16 scales and minima of rows r .. r + W: of sub-blocks 2 p and 2 p + 1 in a lane, the second
// in its high half.
template <class P>
[[gnu::always_inline]] inline void read_int16_scales(const P& panel, int p, int r, I& scales,
                                                     I& minima) {
    if constexpr (!P::Nested) {
        scales = load_int16(panel.scales.scale[p][r]);
        if constexpr (P::Min) minima = load_int16(panel.scales.min[p][r]);
    } else {
        F scale[2], min[2];
        EACH (s, 2) {
            scale[s] = read_scale(panel, 2 * p + s, r);
            min[s] = fma(scale[s], set(P::Middle), read_min(panel, 2 * p + s, r));
        }
        scales = pair_int16(round(scale[1]), round(scale[0]));
        if constexpr (P::Min) minima = pair_int16(round(min[1]), round(min[0]));
    }
}

// Bits of a type's codes as they are multiplied.
template <class P>
constexpr int kCodeBits = P::Codebook ? 8 : P::Bits;

// Nibble vectors 2 k and 2 k + 1 of a panel with int16 scales.
template <class P>
const uint8_t* interleaved_nibbles(const P& panel, int k) {
    return reinterpret_cast<const uint8_t*>(panel.blocks) + 2 * 64 * k;
}

// Byte offset of rows r .. r + W within a 128-byte step, and the distance to the step's second
// vector. With W = 1 (scalar) each vector holds only one of the two sub-blocks.
constexpr int step_offset(int r) {
    return W == 1 ? 64 * interleaved_vector(r) + 4 * interleaved_lane(r) : 4 * r;
}
constexpr int kSecondVector = W == 1 ? 4 : 64;

}  // namespace
}  // namespace starcoder
