// Rows of blocks, as files hold them -> panels, as kernels read them. Exact: every code and scale
// of the file is kept.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "kernels.h"
#include "quantize.h"
#include "threads.h"

namespace starcoder {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Fresh zeroed pages, in huge ones where the system has them: fewer faults while packing, fewer
// misses of the address cache while decoding. Aligned to a page at least.
uint8_t* allocate(size_t nbytes) {
    void* data = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (nbytes >= kHugePage) madvise(data, nbytes, MADV_HUGEPAGE);
#endif
    return static_cast<uint8_t*>(data);
}

// Four inputs of a row stand together in a panel's vectors: they are moved as one word.
void put_four(uint8_t* vector, int r, const uint8_t* four) { std::memcpy(vector + 4 * r, four, 4); }

template <class P>
void pack_codes(const uint8_t* code, int r, P& panel) {
    for (int b = 0; b < kBlocks; ++b, code += 32) {
        if constexpr (P::Bits == 8) {
            for (int j = 0; j < 8; ++j) put_four(panel.codes.byte[b][j], r, code + 4 * j);
        } else {
            uint8_t nibble[16];
            for (int i = 0; i < 16; ++i)
                nibble[i] = static_cast<uint8_t>((code[i] & 15) | code[i + 16] << 4);
            for (int j = 0; j < 4; ++j) put_four(panel.codes.nibble[b][j], r, nibble + 4 * j);
        }
        if constexpr (P::Bits == 5) {
            uint8_t high[4] = {};
            for (int j = 0; j < 8; ++j)
                for (int i = 0; i < 4; ++i)
                    high[i] |= static_cast<uint8_t>((code[4 * j + i] >> 4) << j);
            put_four(panel.codes.high[b][0], r, high);
        }
        if constexpr (P::Bits == 6) {
            uint8_t high[2][4] = {};
            for (int j = 0; j < 8; ++j)
                for (int i = 0; i < 4; ++i)
                    high[j / 4][i] |= static_cast<uint8_t>((code[4 * j + i] >> 4) << 2 * (j % 4));
            put_four(panel.codes.high[b][0], r, high[0]);
            put_four(panel.codes.high[b][1], r, high[1]);
        }
    }
}

template <class P>
void pack_scales(const RowGroup& row, int r, P& panel) {
    for (int s = 0; s < P::Subs; ++s) {
        if constexpr (P::Nested) {
            panel.scales.sc[s][r] = row.sc[s];
            if constexpr (P::Min) panel.scales.m[s][r] = row.m[s];
        } else {
            panel.scales.scale[s][r] = row.scale[s];
            if constexpr (P::Min) panel.scales.min[s][r] = row.min[s];
        }
    }
    if constexpr (P::Nested) {
        panel.scales.d[r] = row.d;
        if constexpr (P::Min) panel.scales.dmin[r] = row.dmin;
    }
}

// Panels begin .. end. Rows past the last stay zero, scales included.
template <class Block, class P>
void pack_blocks(const Block* data, int64_t n_rows, int64_t n_cols, int64_t blocks_a_row,
                 int64_t begin, int64_t end, uint8_t* out) {
    const int64_t groups = divide_up(n_cols, kGroup);
    RowGroup group;
    for (int64_t p = begin; p < end; ++p) {
        P* panels = reinterpret_cast<P*>(out) + p * groups;
        const int64_t rows = std::min<int64_t>(kRows, n_rows - p * kRows);
        for (int64_t g = 0; g < groups; ++g)
            for (int64_t r = 0; r < rows; ++r) {
                split(data + (p * kRows + r) * blocks_a_row, g, n_cols, group);
                pack_codes<P>(group.code, static_cast<int>(r), panels[g]);
                pack_scales<P>(group, static_cast<int>(r), panels[g]);
            }
    }
}

template <class T>
void pack_floats(const T* data, int64_t n_rows, int64_t n_cols, bool pairs, int64_t begin,
                 int64_t end, int64_t panel_len, T* out) {
    for (int64_t p = begin; p < end; ++p) {
        T* panel = out + p * panel_len;
        const int64_t rows = std::min<int64_t>(kRows, n_rows - p * kRows);
        for (int64_t k = 0; k < n_cols; k += 64)  // a cache line or two of each row at a time
            for (int64_t r = 0; r < rows; ++r) {
                const T* row = data + (p * kRows + r) * n_cols;
                for (int64_t i = k; i < std::min(k + 64, n_cols); ++i)
                    panel[pairs ? (i / 2 * kRows + r) * 2 + i % 2 : i * kRows + r] = row[i];
            }
    }
}

}  // namespace

void Matrix::Free::operator()(uint8_t* data) const { munmap(data, nbytes); }

Matrix::Matrix(Type type, const void* data, int64_t n_rows, int64_t n_cols)
    : type_(type), n_rows_(n_rows), n_cols_(n_cols) {
    const int64_t panels = divide_up(n_rows, kRows);
    if (is_float(type)) {
        group_bytes_ = int64_t{kGroup} * kRows * block_bytes(type);
        panel_bytes_ = divide_up(n_cols, 2) * 2 * kRows * block_bytes(type);
    } else {
        group_bytes_ = dispatch(
            type, [](auto, auto p) { return int64_t{sizeof(typename decltype(p)::type)}; });
        panel_bytes_ = divide_up(n_cols, kGroup) * group_bytes_;
    }
    nbytes_ = static_cast<size_t>(panels * panel_bytes_);
    data_ = {allocate(nbytes_), Free{nbytes_}};
    uint8_t* out = data_.get();
    parallel_pieces(panels, 4, [&](int64_t begin, int64_t end) {
        if (type == Type::F32)
            return pack_floats(static_cast<const uint32_t*>(data), n_rows, n_cols, false, begin,
                               end, panel_bytes_ / 4, reinterpret_cast<uint32_t*>(out));
        if (is_float(type))
            return pack_floats(static_cast<const uint16_t*>(data), n_rows, n_cols,
                               type == Type::BF16, begin, end, panel_bytes_ / 2,
                               reinterpret_cast<uint16_t*>(out));
        dispatch(type, [&](auto block, auto panel) {
            using Block = typename decltype(block)::type;
            pack_blocks<Block, typename decltype(panel)::type>(
                static_cast<const Block*>(data), n_rows, n_cols, n_cols / block_len(type), begin,
                end, out);
        });
    });
}

}  // namespace starcoder
