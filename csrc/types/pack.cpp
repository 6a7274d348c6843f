// Rows of blocks, as files hold them -> panels, as kernels read them. Every code is kept, and every
// scale, but that whole scales are rounded: whole.h says how far.
#include <algorithm>
#include <cstring>

#include "kernels.h"
#include "types/decode.h"
#include "sys/schedule.h"
#include "sys/weight_memory.h"
#include "types/int16_scales.h"

namespace starcoder {

namespace {

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Four inputs of a row stand together in a panel's vectors: they are moved as one word.
void put_four(uint8_t* vector, int r, const uint8_t* four) { std::memcpy(vector + 4 * r, four, 4); }

// Where inputs 4 i .. of sub s of a row are in the low nibbles of a panel with whole scales; in the
// high ones are those half a sub on.
template <class P>
uint8_t* paired_codes(P& panel, int s, int i, int r) {
    const int vector = 2 * (s / 2 * (P::Steps / 2) + i) + pair_half(r);
    return reinterpret_cast<uint8_t*>(panel.blocks) + 64 * vector + 4 * (pair_lane(r) + s % 2);
}

template <class P>
void pack_paired_codes(const uint8_t* code, int r, P& panel) {
    for (int s = 0; s < P::Subs; ++s, code += 4 * P::Steps)
        for (int i = 0; i < P::Steps / 2; ++i) {
            uint8_t* to = paired_codes(panel, s, i, r);
            for (int j = 4 * i; j < 4 * i + 4; ++j)
                *to++ = static_cast<uint8_t>((code[j] & 15) | code[j + 2 * P::Steps] << 4);
        }
}

template <class P>
void pack_codes(const uint8_t* code, int r, P& panel) {
    if constexpr (P::Whole) return pack_paired_codes(code, r, panel);
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
        } else if constexpr (!P::Whole) {
            panel.scales.scale[s][r] = row.scale[s];
            if constexpr (P::Min) panel.scales.min[s][r] = row.min[s];
        }
    }
    if constexpr (P::Nested) {
        panel.scales.d[r] = P::Whole ? in_units(row.d, unit) : row.d;
        if constexpr (P::Min) panel.scales.dmin[r] = P::Whole ? in_units(row.dmin, unit) : row.dmin;
    }
}

// Blocks of 32 nibbles hold their codes in the order of a panel: they are moved, not taken apart.
template <class Block, class P>
void pack_nibbles(const Block* rows, int64_t n_rows, int64_t blocks_a_row, int64_t first,
                  const WholeRows<Block, P>& whole, P& panel) {
    for (int64_t r = 0; r < n_rows; ++r)
        for (int b = 0; b < kBlocks && first + b < blocks_a_row; ++b) {
            const Block& block = rows[r * blocks_a_row + first + b];
            const int row = static_cast<int>(r);
            if constexpr (P::Whole) {
                for (int j = 0; j < 4; ++j)
                    std::memcpy(paired_codes(panel, b, j, row), block.qs + 4 * j, 4);
                const int64_t i = r * blocks_a_row + first + b;
                panel.scales.scale[b / 2][r][b % 2] = whole.scale[i];
                if constexpr (P::Min) panel.scales.min[b / 2][r][b % 2] = whole.min[i];
            } else {
                for (int j = 0; j < 4; ++j)
                    put_four(panel.blocks[b].nibble[j], row, block.qs + 4 * j);
                panel.scales.scale[b][r] = block.d;
            }
        }
}

// Fills one group of one panel. Missing rows stay zero, scales included.
template <class Block, class P>
void pack_group(const Block* rows, int64_t n_rows, int64_t n_cols, int64_t g,
                const WholeRows<Block, P>& whole, uint8_t* out) {
    const int64_t blocks_a_row = n_cols * int64_t{P::Nested ? 1 : 8} / 256;
    P& panel = *reinterpret_cast<P*>(out);
    if constexpr (P::Bits == 4 && !P::Nested)
        return pack_nibbles(rows, n_rows, blocks_a_row, g * kBlocks, whole, panel);
    RowGroup group;
    for (int64_t r = 0; r < n_rows; ++r) {
        split(rows + r * blocks_a_row, g, n_cols, group);
        pack_codes<P>(group.code, static_cast<int>(r), panel);
        pack_scales<P>(group, static_cast<int>(r), whole.unit[r], panel);
    }
}

// Up to 16 rows, all groups of one panel: `out` is the first, and its neighbor's lie in between.
template <class Block, class P>
void pack_panel(const Block* rows, int64_t n_rows, int64_t n_cols, float* unit, uint8_t* out) {
    const WholeRows<Block, P> whole(rows, n_rows, n_cols);
    if (unit) std::copy_n(whole.unit, kRows, unit);
    for (int64_t g = 0; g < divide_up(n_cols, kGroup) && n_rows > 0; ++g)
        pack_group<Block, P>(rows, n_rows, n_cols, g, whole, out + 2 * g * int64_t{sizeof(P)});
}

// Up to 32 rows of floats. `kPairs` of inputs stand side by side.
template <class T, bool kPairs>
void pack_floats(const uint8_t* rows, int64_t n_rows, int64_t n_cols, T* out) {
    for (int64_t first = 0; first < n_cols; first += kGroup, out += kGroup * kStripRows) {
        const int64_t n = std::min<int64_t>(kGroup, n_cols - first);
        for (int64_t r = 0; r < n_rows; ++r)
            for (int64_t i = 0; i < n; ++i)
                out[kPairs ? (i / 2 * kStripRows + r) * 2 + i % 2 : i * kStripRows + r] =
                    number_at<T>(rows, r * n_cols + first + i);
    }
}

// Of one panel's group.
int64_t packed_group_bytes(Type type) {
    if (is_float(type)) return int64_t{kGroup} * kRows * block_bytes(type);
    return dispatch(type, [](auto, auto p) { return int64_t{sizeof(typename decltype(p)::type)}; });
}

// Of the units of all rows, which follow the panels.
int64_t units_bytes(Type type, int64_t pairs) {
    return is_whole(type) ? int64_t{sizeof(float[kStripRows])} * pairs : 0;
}

}  // namespace

int64_t packed_bytes(Type type, int64_t n_rows, int64_t n_cols) {
    const int64_t pairs = divide_up(n_rows, kStripRows), groups = divide_up(n_cols, kGroup);
    return pairs * groups * 2 * packed_group_bytes(type) + units_bytes(type, pairs);
}

Matrix::Matrix(Type type, const void* data, int64_t n_rows, int64_t n_cols)
    : type_(type),
      n_rows_(n_rows),
      n_cols_(n_cols),
      n_groups_(divide_up(n_cols, kGroup)),
      group_bytes_(packed_group_bytes(type)),
      nbytes_(static_cast<size_t>(packed_bytes(type, n_rows, n_cols))) {
    const int64_t pairs = divide_up(n_rows, kStripRows);
    data_ = weight_memory(nbytes_);
    if (is_whole(type))
        units_ = reinterpret_cast<float*>(data_.get() + nbytes_ - units_bytes(type, pairs));

    const auto* bytes = static_cast<const uint8_t*>(data);
    const int64_t row_bytes = n_cols / block_len(type) * block_bytes(type);
    const auto place = [&](int64_t pair, int half) {
        return const_cast<uint8_t*>(group(pair, 0, half));
    };
    parallel_pieces(pairs, 2, [&](int64_t begin, int64_t end) {
        for (int64_t pair = begin; pair < end; ++pair) {
            const int64_t first = pair * kStripRows;
            const auto pack_halves = [&](auto block, auto p) {
                using Block = typename decltype(block)::type;
                using P = typename decltype(p)::type;
                for (int half = 0; half < 2; ++half) {
                    const int64_t row = first + half * kRows;
                    pack_panel<Block, P>(reinterpret_cast<const Block*>(bytes + row * row_bytes),
                                         std::clamp<int64_t>(n_rows - row, 0, kRows), n_cols,
                                         units_ ? units_ + row : nullptr, place(pair, half));
                }
            };
            const auto pack_rows = [&]<class T, bool kPairs>() {
                pack_floats<T, kPairs>(bytes + first * row_bytes,
                                       std::min<int64_t>(kStripRows, n_rows - first), n_cols,
                                       reinterpret_cast<T*>(place(pair, 0)));
            };
            switch (type) {
                case Type::F32: pack_rows.template operator()<uint32_t, false>(); break;
                case Type::F16: pack_rows.template operator()<uint16_t, false>(); break;
                case Type::BF16: pack_rows.template operator()<uint16_t, true>(); break;
                default: dispatch(type, pack_halves);
            }
        }
    });
}

}  // namespace starcoder
