#include "ops/gemm.h"

#include <algorithm>

#include "simd/isa.h"

namespace starcoder {

namespace {

// Tiles of `gemv_tokens` that are multiplied straight from the panels, one after the other. Q4_0 on
// Zen 4, tokens/s with 16 tokens: 168 from unpacked tiles, 289 straight; with 48: 292 and 340.
constexpr int64_t kGemvTiles = 6;

// Groups unpacked at a time: two tiles are 12 KB at most, and stay near the multipliers while all
// tokens of a block pass by. Share of the peak on Zen 4: 0.80 with two, 0.73 to 0.79 with eight,
// which leave a cache of 32 KB.
constexpr int64_t kTiles = 2;

// Groups of activations that stay in the second-level cache.
constexpr int64_t kNearGroups = 8;       // quantized
constexpr int64_t kNearFloatGroups = 4;  // floats

// Tokens multiplied between one prefetch of weights and the next; a multiple of every tile.
constexpr int64_t kSlice = 24;

// Groups g .. end of one strip times tokens t .. t + n. `next` is what will be unpacked after them.
void multiply_groups(const PackedMatrix& w, int64_t strip, int64_t g, int64_t end,
                     const uint8_t* next, const QuantizedActivations& x, int64_t t, int64_t n,
                     float* acc) {
    UnpackedTile tiles[kTiles];
    for (; g < end; g += kTiles) {
        const int64_t count = std::min(kTiles, end - g);
        for (int64_t i = 0; i < count; ++i)
            for (int which = 0; which < 2; ++which)
                isa().unpack(w.type, w.group(strip, g + i, which), which, tiles[i]);
        // What is unpacked next is prefetched in slices, and is there in time.
        const uint8_t* ahead = g + kTiles < end ? w.group(strip, g + kTiles) : next;
        const int64_t slice_bytes = divide_up(count * 2 * w.group_bytes, divide_up(n, kSlice));
        for (int64_t i = 0; i < n; i += kSlice, ahead += slice_bytes) {
            prefetch(ahead, slice_bytes);
            isa().gemm(w.type, tiles, count, x.at(g, t + i), x.n_rows, std::min(kSlice, n - i),
                       acc + i * kStripRows);
        }
    }
}

// Inputs of a group, of BF16 whole pairs.
int64_t inputs_of(const PackedMatrix& w, int64_t g) {
    const int64_t k = w.type == Type::BF16 ? divide_up(w.n_cols, 2) * 2 : w.n_cols;
    return std::min<int64_t>(kGroup, k - g * kGroup);
}

void multiply_group(const PackedMatrix& w, int64_t strip, int64_t g, const FloatGroup* x, int64_t n,
                    float* acc) {
    const int64_t k = inputs_of(w, g);
    const uint8_t* group = w.group(strip, g);
    // F32 is multiplied as it lies: a tile would be a copy. Prompts of 512 on Zen 4, share of the
    // peak: 0.79 from tiles, 0.85 without.
    if (w.type == Type::F32 || is_gemv(n)) {
        for (int64_t i = 0, at_once = isa().gemv_tokens; i < n; i += at_once)
            isa().gemv_floats(w.type, group, k, x + i, std::min(at_once, n - i),
                              acc + i * kStripRows);
        return;
    }
    for (int64_t i = 0; i < 2 * w.group_bytes; i += 64) prefetch_far(group + i);
    alignas(64) float tile[kGroup * kStripRows];
    isa().unpack_floats(w.type, group, k, tile);
    isa().gemm_floats(tile, k, x, n, acc);
}

void multiply_group(const PackedMatrix& w, int64_t strip, int64_t g, const Bf16Group* x, int64_t n,
                    float* acc) {
    isa().gemm_bf16(w.group(strip, g), inputs_of(w, g) / 2, x, n, acc);
}

template <class Group>
void multiply_any(const PackedMatrix& w, int64_t first, int64_t count, const GroupMajor<Group>& x,
                  int64_t t, int64_t n, float* acc) {
    const int64_t near = is_gemv(n) ? w.n_groups : kNearFloatGroups;
    for (int64_t begin = 0; begin < w.n_groups; begin += near)
        for (int64_t s = 0; s < count; ++s)
            for (int64_t g = begin; g < std::min(begin + near, w.n_groups); ++g)
                multiply_group(w, first + s, g, x.at(g, t), n, acc + s * n * kStripRows);
}

}  // namespace

bool is_gemv(int64_t n) { return n <= kGemvTiles * isa().gemv_tokens; }

void gemm(const PackedMatrix& w, int64_t first, int64_t count, const QuantizedActivations& x,
          int64_t t, int64_t n, float* acc) {
    for (int64_t g = 0; g < w.n_groups; g += kNearGroups)
        for (int64_t s = 0; s < count; ++s) {
            const uint8_t* next = s + 1 < count                  ? w.group(first + s + 1, g)
                                  : g + kNearGroups < w.n_groups ? w.group(first, g + kNearGroups)
                                                                 : w.group(first + count, 0);
            multiply_groups(w, first + s, g, std::min(g + kNearGroups, w.n_groups), next, x, t, n,
                            acc + s * n * kStripRows);
        }
}

void gemm(const PackedMatrix& w, int64_t first, int64_t count,
          const GroupMajor<const FloatGroup>& x, int64_t t, int64_t n, float* acc) {
    multiply_any(w, first, count, x, t, n, acc);
}

void gemm(const PackedMatrix& w, int64_t first, int64_t count, const GroupMajor<const Bf16Group>& x,
          int64_t t, int64_t n, float* acc) {
    multiply_any(w, first, count, x, t, n, acc);
}

}  // namespace starcoder
