// A group of a panel unpacked to its half of a tile: part of loops.h.
#pragma once

namespace starcoder {
namespace {

template <class P, int J>
void unpack_vectors(const P& panel, int b, int which, UnpackedTile& tile) {
    for (int i = 0; i < 64; i += 4 * W) {
        B low, high;
        read_codes<P, J>(panel, b, i, low, high);
        store_codes(tile.code[8 * b + J] + 64 * which + i, low);
        store_codes(tile.code[8 * b + J + 4] + 64 * which + i, high);
    }
}

template <class P>
void unpack_interleaved(const P& panel, int which, UnpackedTile& tile) {
    for (int k = 0; k < kBlocks * 2; ++k) {
        const int low = k / (P::Steps / 2) * P::Steps + k % (P::Steps / 2);
        for (int i = 0; i < 2 * 64; i += 4 * W) {
            const B nibbles = load_bytes(interleaved_nibbles(panel, k) + i);
            store_codes(tile.code[2 * low + which] + i, low_nibbles(nibbles));
            store_codes(tile.code[2 * low + P::Steps + which] + i, high_nibbles(nibbles));
        }
    }
}

template <class P>
void unpack_panel(const uint8_t* group, int which, UnpackedTile& tile) {
    const P& panel = *reinterpret_cast<const P*>(group);
    if constexpr (P::Int16) unpack_interleaved(panel, which, tile);
    for (int b = 0; !P::Int16 && b < kBlocks; ++b) {
        unpack_vectors<P, 0>(panel, b, which, tile);
        unpack_vectors<P, 1>(panel, b, which, tile);
        unpack_vectors<P, 2>(panel, b, which, tile);
        unpack_vectors<P, 3>(panel, b, which, tile);
    }
    for (int r = 0, at = kRows * which; r < kRows; r += W, at += W)
        if constexpr (P::Int16) {
            for (int p = 0; p < P::Subs / 2; ++p) {
                I scales, minima;
                read_int16_scales(panel, p, r, scales, minima);
                store_int(tile.scale16[p] + at, scales);
                if (P::Min) store_int(tile.min16[p] + at, minima);
            }
        } else {
            for (int s = 0; s < P::Subs; ++s) {
                store(tile.scale[s] + at, read_scale(panel, s, r));
                if (P::Min) store(tile.min[s] + at, read_min(panel, s, r));
            }
        }
}

void unpack(Type type, const uint8_t* group, int which, UnpackedTile& tile) {
    visit<Quantized>(
        type, [&](auto kind) { unpack_panel<typename decltype(kind)::Panel>(group, which, tile); });
}

}  // namespace
}  // namespace starcoder
