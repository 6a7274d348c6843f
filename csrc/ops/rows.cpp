// Operations on single rows: embeddings, norms, gates, and the choice of rows.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "ops/inputs.h"
#include "simd/isa.h"
#include "sys/schedule.h"
#include "types/packed.h"

namespace starcoder {

namespace {

// Calls f(i) for every row i.
template <class F>
void for_rows(Schedule& schedule, int64_t n, F f) {
    schedule.add(n, [f](Pieces& pieces) {
        for (const auto [begin, end] : pieces)
            for (int64_t i = begin; i < end; ++i) f(i);
    });
}

// Row r of a strip of floats, `count` inputs of group g.
void embed_floats(const PackedMatrix& w, int64_t strip, int64_t r, int64_t g, int64_t count,
                  float* y) {
    alignas(64) float tile[kGroup * kStripRows];
    const bool swapped = w.type == Type::BF16;
    isa().unpack_floats(w.type, w.group(strip, g), swapped ? divide_up(count, 2) * 2 : count, tile);
    for (int64_t i = 0; i < count; ++i) y[i] = tile[(swapped ? i ^ 1 : i) * kStripRows + r];
}

// One weight of a tile with scales of f32: row `lane`, input i.
template <class P>
float weight_at(const UnpackedTile& tile, int lane, int64_t i) {
    const bool is_signed = isa().signed_bytes && (P::Bits == 8 || P::Codebook);
    const int64_t sub = i * P::Subs / kGroup;
    const uint8_t code = tile.code[i / 4][4 * lane + i % 4];
    const int value = is_signed ? static_cast<int8_t>(code) : code - P::Zero;
    const float product = tile.scale[sub][lane] * static_cast<float>(value);
    return P::Min ? product + tile.min[sub][lane] : product;
}

// The same with int16 scales, in units of the row.
template <class P>
int int16_weight_at(const UnpackedTile& tile, int lane, int64_t i) {
    const int64_t sub = i * P::Subs / kGroup, step = sub / 2 * P::Steps + i / 4 % P::Steps;
    const int64_t at = 64 * interleaved_vector(lane) + 4 * (interleaved_lane(lane) + sub % 2);
    const auto of_sub = [&](const int32_t (&pairs)[4][kStripRows]) {
        const int32_t pair = pairs[sub / 2][lane];
        return sub % 2 ? pair >> 16 : static_cast<int16_t>(pair);
    };
    const int value = tile.code[2 * step][at + i % 4] - P::Middle;
    return of_sub(tile.scale16) * value + (P::Min ? of_sub(tile.min16) : 0);
}

// Group g of row `row`: up to 128 floats.
void embed_group(const PackedMatrix& w, int64_t row, int64_t g, int64_t count, float* y) {
    const int64_t strip = row / kStripRows;
    if (is_float(w.type)) return embed_floats(w, strip, row % kStripRows, g, count, y);
    const int lane = static_cast<int>(row % kRows);
    UnpackedTile tile;
    isa().unpack(w.type, w.group(strip, g, static_cast<int>(row / kRows % 2)), 0, tile);
    visit<Quantized>(w.type, [&](auto kind) {
        using P = typename decltype(kind)::Panel;
        for (int64_t i = 0; i < count; ++i)
            if constexpr (P::Int16)
                y[i] = static_cast<float>(int16_weight_at<P>(tile, lane, i)) * w.units[row];
            else
                y[i] = weight_at<P>(tile, lane, i);
    });
}

}  // namespace

void embed(Schedule& schedule, const Matrix& matrix, const int32_t* ids, int64_t n,
           const float* positions, const int32_t* places, float* y) {
    const PackedMatrix& w = matrix.packed();
    for_rows(schedule, n, [=, &w](int64_t t) {
        const int64_t k = w.n_cols;
        float* row = y + t * k;
        for (int64_t i = 0; i < k; i += kGroup)
            embed_group(w, ids[t], i / kGroup, std::min<int64_t>(kGroup, k - i), row + i);
        const float* added = positions ? positions + places[t] * k : nullptr;
        for (int64_t i = 0; added && i < k; ++i) row[i] += added[i];
    });
}

void norm(Schedule& schedule, const float* x, const Norm& norm, int64_t n, int64_t k, float* y) {
    for_rows(schedule, n, [=](int64_t t) { normalize(norm, x + t * k, k, y + t * k); });
}

void gated(Schedule& schedule, const float* gate, const float* up, int64_t n, int64_t m,
           Activation activation, float* y) {
    constexpr int64_t kColumns = 512;  // of a unit: one token has work for all threads
    const int64_t units = divide_up(m, kColumns);
    for_rows(schedule, n * units, [=](int64_t unit) {
        const int64_t column = unit % units * kColumns, at = unit / units * m + column;
        isa().gated(gate + at, up + at, std::min(kColumns, m - column), activation, y + at);
    });
}

void copy_columns(Schedule& schedule, const float* x, int64_t n, int64_t k, float* y,
                  int64_t stride) {
    for_rows(schedule, n, [=](int64_t i) {
        std::memcpy(y + i * stride, x + i * k, static_cast<size_t>(k) * sizeof(float));
    });
}

void select(Schedule& schedule, const float* x, const int32_t* rows, int64_t r, int64_t k,
            float* y) {
    for_rows(schedule, r, [=](int64_t i) {
        std::memcpy(y + i * k, x + rows[i] * k, static_cast<size_t>(k) * sizeof(float));
    });
}

void rotate(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads,
            const int32_t* positions, const float* table, float* y) {
    const int64_t d = heads.head_dim, half_dim = d / 2;
    const int64_t turned = (heads.n_heads + heads.n_kv_heads) * d;
    for_rows(schedule, n, [=](int64_t t) {
        const float* from = qkv + t * heads.row();
        const float *cosines = table + positions[t] * d, *sines = cosines + half_dim;
        float* to = y + t * heads.row();
        for (int64_t at = 0; at < turned; at += d)
            for (int64_t j = at; j < at + half_dim; ++j) {
                const float a = from[j], b = from[j + half_dim];
                const float c = cosines[j - at], s = sines[j - at];
                to[j] = a * c - b * s;
                to[j + half_dim] = b * c + a * s;
            }
        if (to != from) std::copy(from + turned, from + heads.row(), to + turned);
    });
}

}  // namespace starcoder
