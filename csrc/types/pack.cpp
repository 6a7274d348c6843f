// Rows of blocks, as files hold them -> panels, as kernels read them. Every code is kept, and every
// scale, but for those that become int16 (int16_scales.h).
#include <algorithm>
#include <cstring>

#include "sys/schedule.h"
#include "sys/weight_memory.h"
#include "types/decode.h"
#include "types/int16_scales.h"
#include "types/packed.h"

namespace starcoder {

namespace {

// Four inputs of a row stand together in a panel's vectors: they are moved as one word.
void put_four(uint8_t* vector, int r, const uint8_t* four) { std::memcpy(vector + 4 * r, four, 4); }

// Where inputs 4 i .. of sub-block s of a row are in the low nibbles of a panel with int16 scales;
// in the high ones are those half a sub-block on.
template <class P>
uint8_t* interleaved_codes(P& panel, int s, int i, int r) {
    const int vector = 2 * (s / 2 * (P::Steps / 2) + i) + interleaved_vector(r);
    return reinterpret_cast<uint8_t*>(panel.blocks) + 64 * vector +
           4 * (interleaved_lane(r) + s % 2);
}

template <class P>
void pack_interleaved(const uint8_t* code, int r, P& panel) {
    for (int s = 0; s < P::Subs; ++s, code += 4 * P::Steps)
        for (int i = 0; i < P::Steps / 2; ++i) {
            uint8_t* to = interleaved_codes(panel, s, i, r);
            for (int j = 4 * i; j < 4 * i + 4; ++j)
                *to++ = static_cast<uint8_t>((code[j] & 15) | code[j + 2 * P::Steps] << 4);
        }
}

template <class P>
void pack_codes(const uint8_t* code, int r, P& panel) {
    if constexpr (P::Int16) return pack_interleaved(code, r, panel);
    for (int b = 0; b < kBlocks; ++b, code += 32) {
        if constexpr (P::Bits == 8) {
            for (int j = 0; j < 8; ++j)
                put_four(panel.blocks[b].byte[j % 4][j / 4], r, code + 4 * j);
        } else {
            uint8_t nibble[16];
            for (int i = 0; i < 16; ++i)
                nibble[i] = static_cast<uint8_t>((code[i] & 15) | code[i + 16] << 4);
            for (int j = 0; j < 4; ++j) put_four(panel.blocks[b].nibble[j], r, nibble + 4 * j);
        }
        if constexpr (P::Bits == 5) {
            uint8_t high[4] = {};
            for (int j = 0; j < 8; ++j)
                for (int i = 0; i < 4; ++i)
                    high[i] |= static_cast<uint8_t>((code[4 * j + i] >> 4) << j);
            put_four(panel.blocks[b].high[0], r, high);
        }
        if constexpr (P::Bits == 6) {
            uint8_t high[2][4] = {};
            for (int j = 0; j < 8; ++j)
                for (int i = 0; i < 4; ++i)
                    high[j / 4][i] |= static_cast<uint8_t>((code[4 * j + i] >> 4) << 2 * (j % 4));
            put_four(panel.blocks[b].high[0], r, high[0]);
            put_four(panel.blocks[b].high[1], r, high[1]);
        }
    }
}

template <class P>
void pack_scales(const RowGroup& row, int r, float unit, P& panel) {
    for (int s = 0; s < P::Subs; ++s) {
        if constexpr (P::Nested) {
            panel.scales.sc[s][r] = row.sc[s];
            if constexpr (P::Min) panel.scales.m[s][r] = row.m[s];
        } else if constexpr (!P::Int16) {
            panel.scales.scale[s][r] = row.scale[s];
            if constexpr (P::Min) panel.scales.min[s][r] = row.min[s];
        }
    }
    if constexpr (P::Nested) {
        panel.scales.d[r] = P::Int16 ? in_units(row.d, unit) : row.d;
        if constexpr (P::Min) panel.scales.dmin[r] = P::Int16 ? in_units(row.dmin, unit) : row.dmin;
    }
}

// Blocks of 32 nibbles hold their codes in the order of a panel: they are moved, not taken apart.
template <Type Kind, class Block, class P>
void pack_nibbles(const Block* rows, int64_t n_rows, int64_t blocks_a_row, int64_t first,
                  const Int16RowScales<Kind>& scales, P& panel) {
    for (int64_t r = 0; r < n_rows; ++r)
        for (int b = 0; b < kBlocks && first + b < blocks_a_row; ++b) {
            const int64_t i = r * blocks_a_row + first + b;
            const Block& block = rows[i];
            const int row = static_cast<int>(r);
            if constexpr (P::Int16) {
                for (int j = 0; j < 4; ++j)
                    std::memcpy(interleaved_codes(panel, b, j, row), block.qs + 4 * j, 4);
                const auto at = static_cast<size_t>(i);
                panel.scales.scale[b / 2][r][b % 2] = scales.scale[at];
                if constexpr (P::Min) panel.scales.min[b / 2][r][b % 2] = scales.min[at];
            } else {
                for (int j = 0; j < 4; ++j)
                    put_four(panel.blocks[b].nibble[j], row, block.qs + 4 * j);
                panel.scales.scale[b][r] = block.d;
            }
        }
}

// Fills one group of one panel. Missing rows stay zero, scales included.
template <Type Kind>
void pack_group(const typename Quantized<Kind>::Block* rows, int64_t n_rows, int64_t n_cols,
                int64_t g, const Int16RowScales<Kind>& scales, uint8_t* out) {
    using P = typename Quantized<Kind>::Panel;
    const int64_t blocks_a_row = n_cols / Quantized<Kind>::kBlockLen;
    P& panel = *reinterpret_cast<P*>(out);
    if constexpr (P::Bits == 4 && !P::Nested)
        return pack_nibbles<Kind>(rows, n_rows, blocks_a_row, g * kBlocks, scales, panel);
    RowGroup group;
    for (int64_t r = 0; r < n_rows; ++r) {
        split<Kind>(rows + r * blocks_a_row, g, n_cols, group);
        pack_codes<P>(group.code, static_cast<int>(r), panel);
        pack_scales<P>(group, static_cast<int>(r), scales.unit[r], panel);
    }
}

// Up to 16 rows, all groups of one panel: `out` is the first, and its neighbor's lie in between.
template <Type Kind>
void pack_panel(const uint8_t* data, int64_t n_rows, int64_t n_cols, float* unit, uint8_t* out) {
    using P = typename Quantized<Kind>::Panel;
    const auto* rows = reinterpret_cast<const typename Quantized<Kind>::Block*>(data);
    const Int16RowScales<Kind> scales(rows, n_rows, n_cols);
    if (unit) std::copy_n(scales.unit, kRows, unit);
    for (int64_t g = 0; g < divide_up(n_cols, kGroup) && n_rows > 0; ++g)
        pack_group<Kind>(rows, n_rows, n_cols, g, scales, out + 2 * g * int64_t{sizeof(P)});
}

// Up to 32 rows of floats. Of BF16 each two inputs stand side by side.
template <Type Kind>
void pack_floats(const uint8_t* rows, int64_t n_rows, int64_t n_cols, uint8_t* data) {
    using T = typename Float<Kind>::Bits;
    constexpr bool kPairs = Kind == Type::BF16;
    auto* out = reinterpret_cast<T*>(data);
    for (int64_t first = 0; first < n_cols; first += kGroup, out += kGroup * kStripRows) {
        const int64_t n = std::min<int64_t>(kGroup, n_cols - first);
        for (int64_t r = 0; r < n_rows; ++r)
            for (int64_t i = 0; i < n; ++i)
                out[kPairs ? (i / 2 * kStripRows + r) * 2 + i % 2 : i * kStripRows + r] =
                    number_at<T>(rows, r * n_cols + first + i);
    }
}

int64_t packed_group_bytes(Type type) {
    if (is_float(type)) return int64_t{kGroup} * kRows * block_bytes(type);
    return visit<Quantized>(
        type, [](auto kind) { return int64_t{sizeof(typename decltype(kind)::Panel)}; });
}

bool has_int16_scales(Type type) {
    if (is_float(type)) return false;
    return visit<Quantized>(type, [](auto kind) { return decltype(kind)::Panel::Int16; });
}

// Of the units of all rows, which follow the panels.
int64_t units_bytes(Type type, int64_t n_strips) {
    return has_int16_scales(type) ? int64_t{sizeof(float[kStripRows])} * n_strips : 0;
}

// Rows of one strip, `data` the first of them.
void pack_strip(const PackedMatrix& w, const uint8_t* data, int64_t n_rows, float* units,
                uint8_t* out) {
    if (is_float(w.type))
        return visit<Float>(w.type, [&](auto kind) {
            pack_floats<kind.kType>(data, std::min<int64_t>(n_rows, kStripRows), w.n_cols, out);
        });
    visit<Quantized>(w.type, [&](auto kind) {
        const int64_t row_bytes =
            w.n_cols / kind.kBlockLen * int64_t{sizeof(typename decltype(kind)::Block)};
        for (int which = 0; which < 2; ++which)
            pack_panel<kind.kType>(data + which * kRows * row_bytes,
                                   std::clamp<int64_t>(n_rows - which * kRows, 0, kRows), w.n_cols,
                                   units ? units + which * kRows : nullptr,
                                   out + which * w.group_bytes);
    });
}

}  // namespace

int64_t packed_bytes(Type type, int64_t n_rows, int64_t n_cols) {
    const int64_t strips = divide_up(n_rows, kStripRows), groups = divide_up(n_cols, kGroup);
    return strips * groups * 2 * packed_group_bytes(type) + units_bytes(type, strips);
}

Matrix::Matrix(Type type, const void* data, int64_t n_rows, int64_t n_cols) {
    const auto nbytes = static_cast<size_t>(packed_bytes(type, n_rows, n_cols));
    const std::shared_ptr<uint8_t> memory = weight_memory(nbytes);
    PackedMatrix w{type,
                   n_rows,
                   n_cols,
                   divide_up(n_rows, kStripRows),
                   divide_up(n_cols, kGroup),
                   packed_group_bytes(type),
                   nbytes,
                   memory,
                   nullptr};
    float* units = nullptr;
    if (has_int16_scales(type))
        units = reinterpret_cast<float*>(memory.get() + w.n_strips * w.strip_bytes());
    w.units = units;
    packed_ = std::make_shared<const PackedMatrix>(std::move(w));

    const auto* rows = static_cast<const uint8_t*>(data);
    const int64_t row_bytes = n_cols / block_len(type) * block_bytes(type);
    parallel_pieces(packed_->n_strips, 2, [&](int64_t begin, int64_t end) {
        for (int64_t strip = begin; strip < end; ++strip) {
            const int64_t first = strip * kStripRows;
            pack_strip(*packed_, rows + first * row_bytes, n_rows - first,
                       units ? units + first : nullptr,
                       memory.get() + strip * packed_->strip_bytes());
        }
    });
}

Type Matrix::type() const { return packed_->type; }
int64_t Matrix::n_rows() const { return packed_->n_rows; }
int64_t Matrix::n_cols() const { return packed_->n_cols; }
size_t Matrix::nbytes() const { return packed_->nbytes; }

}  // namespace starcoder
