#include "ops/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace starcoder {

namespace {

// Blocks of keys that queries meet at once: two of them share each load of a query.
constexpr int64_t kBlocksAtOnce = 2;

// Values that queries meet at once: their sums wait in registers meanwhile.
constexpr int64_t kValuesAtOnce = 128;

void scaled(const float* __restrict x, float scale, int64_t n, float* __restrict to) {
    for (int64_t i = 0; i < n; ++i) to[i] = x[i] * scale;
}

}  // namespace

const int32_t* block_table(const Rows& rows, int64_t i) {
    const int32_t* after = std::upper_bound(rows.row_starts, rows.row_starts + rows.n_sequences, i);
    return rows.block_tables + (after - rows.row_starts - 1) * rows.table_len;
}

Workspace::Workspace(Cutter& cutter, int64_t n_queries, int64_t width)
    : queries(cutter.take<float>(n_queries * width)),
      weights(cutter.take<float>(n_queries * kPart)),
      block(cutter.take<float>(std::max(kBlocksAtOnce * kCacheBlock, kValuesAtOnce) * width)),
      total(Sums::cut(cutter, n_queries, width)),
      next(Sums::cut(cutter, n_queries, width)) {}

Workspace Workspace::of_this_thread(int64_t n_queries, int64_t width) {
    Cutter measure(nullptr);
    Workspace(measure, n_queries, width);
    Cutter cutter(cache_lines(measure.used(), 1));
    return Workspace(cutter, n_queries, width);
}

AttentionTile::AttentionTile(const float* qkv, const Heads& heads, const Rows& rows,
                             const Cache& cache, float* y)
    : qkv_(qkv),
      heads_(heads),
      rows_(rows),
      cache_(cache),
      y_(y),
      group_(heads.n_heads / heads.n_kv_heads),
      width_(heads.width()) {}

// A function of a part's keys: where the block of one begins, in the cache's keys as in its values.
auto AttentionTile::block_offsets(const Queries& q, int64_t part) const {
    const int32_t* blocks = block_table(rows_, q.row) + part * kPart / kCacheBlock;
    const int64_t head = q.kv_head * width_ * kCacheBlock;
    return [this, blocks, head](int64_t key) {
        return cache_.block(blocks[key / kCacheBlock]) + head;
    };
}

// Keys of a part that row `r` of the batch may see: none, some or all of them.
int64_t AttentionTile::visible(int64_t r, int64_t part) const {
    return std::clamp<int64_t>(rows_.positions[r] + 1 - part * kPart, 0, kPart);
}

void AttentionTile::attend_all(const Queries& q, const Workspace& space) const {
    load(q, space.queries);
    const int64_t parts = n_parts(rows_.positions[q.row + q.n - 1]);
    for (int64_t part = 0; part < parts; ++part) {
        Prefetcher ahead = prefetcher();
        // One row waits for memory. More of them wait for the multipliers, and lose 2 percent.
        if (q.n == 1 && part == 0) add_rest(q, part, ahead);
        if (q.n == 1 && part + 1 < parts) add_part(q, part + 1, ahead);
        attend(q, part, space, part ? space.next : space.total, ahead);
        if (part == 0) continue;
        for (int64_t r = 0; r < q.n; ++r)
            if (part < n_parts(rows_.positions[q.row + r]))
                merge(space.total.from(r * q.size, width_), space.next.from(r * q.size, width_),
                      q.size);
    }
    write(q, space.total);
}

void AttentionTile::load(const Queries& q, float* queries) const {
    const int64_t d = heads_.head_dim;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    for (int64_t r = 0; r < q.n; ++r) {
        const float* from = qkv_ + (q.row + r) * heads_.row() + (q.kv_head * group_ + q.first) * d;
        for (int64_t h = 0; h < q.size; ++h, queries += width_, from += d) {
            scaled(from, scale, d, queries);
            std::fill(queries + d, queries + width_, 0.0f);
            if (heads_.bf16) isa().round_pairs(queries, width_);
        }
    }
}

void AttentionTile::attend(const Queries& q, int64_t part, const Workspace& space, const Sums& out,
                           Prefetcher& prefetcher) const {
    // Two steps of a part for each line of a block and each query: 8 of them share a step.
    prefetcher.set_rate(divide_up(prefetcher.n_blocks(), 2 * q.count()));
    Prefetcher* const some = prefetcher.n_blocks() ? &prefetcher : nullptr;
    score(q, part, space, some);
    for (int64_t r = 0; r < q.n; ++r)
        if (const int64_t seen = visible(q.row + r, part))
            for (int64_t i = r * q.size; i < (r + 1) * q.size; ++i) {
                float* weights = space.weights + i * kPart;
                const int64_t n = divide_up(seen, kCacheBlock) * kCacheBlock;
                isa().softmax(weights, n, seen, out.max + i, out.sum + i);
                if (heads_.bf16) isa().round_pairs(weights, n);
            }
    std::memset(out.acc, 0, static_cast<size_t>(q.count() * width_) * sizeof(float));
    add_values(q, part, space, out.acc, some);
}

// Queries times keys.
void AttentionTile::score(const Queries& q, int64_t part, const Workspace& space,
                          Prefetcher* prefetcher) const {
    const int64_t keys = visible(q.row + q.n - 1, part);
    const auto offset = block_offsets(q, part);
    for (int64_t key = 0; key < keys; key += kBlocksAtOnce * kCacheBlock) {
        const int64_t n_blocks = std::min(kBlocksAtOnce, divide_up(keys - key, kCacheBlock));
        const uint16_t* blocks[kBlocksAtOnce];
        for (int64_t b = 0; b < n_blocks; ++b)
            blocks[b] = cache_.keys + offset(key + b * kCacheBlock);
        if (heads_.bf16) {
            isa().scores_bf16(space.queries, q.count(), width_, blocks, n_blocks, prefetcher,
                              space.block, space.weights + key, kPart);
            continue;
        }
        for (int64_t b = 0; b < n_blocks; ++b)
            isa().widen_half(blocks[b], width_ * kCacheBlock,
                             space.block + b * width_ * kCacheBlock);
        isa().scores(space.queries, q.count(), width_, space.block, n_blocks, space.weights + key,
                     kPart);
    }
}

// acc += weights times values.
void AttentionTile::add_values(const Queries& q, int64_t part, const Workspace& space, float* acc,
                               Prefetcher* prefetcher) const {
    const int64_t keys = visible(q.row + q.n - 1, part);
    const auto offset = block_offsets(q, part);
    for (int64_t key = 0; key < keys; key += kValuesAtOnce) {
        const uint16_t* values[kValuesAtOnce / kCacheBlock];
        for (int64_t i = 0; i < std::min(kValuesAtOnce, keys - key); i += kCacheBlock) {
            const uint16_t* block = values[i / kCacheBlock] = cache_.values + offset(key + i);
            if (!heads_.bf16)
                isa().widen_half(block, width_ * kCacheBlock, space.block + i * width_);
        }
        const auto seen = [&](int64_t r) {
            return std::clamp<int64_t>(visible(q.row + r, part) - key, 0, kValuesAtOnce);
        };
        for (int64_t r = 0, n; r < q.n; r += n) {  // rows that see the same keys go together
            for (n = 1; r + n < q.n && seen(r + n) == seen(r);) ++n;
            const float* weights = space.weights + r * q.size * kPart;
            float* to = acc + r * q.size * width_;
            if (heads_.bf16)
                isa().weighted_values_bf16(weights, kPart, key, seen(r), n * q.size, width_, values,
                                           prefetcher, space.block, to);
            else
                isa().weighted_values(weights + key, kPart, seen(r), n * q.size, width_,
                                      space.block, to);
        }
    }
}

void AttentionTile::write(const Queries& q, const Sums& sums) const {
    const int64_t d = heads_.head_dim;
    for (int64_t r = 0; r < q.n; ++r)
        for (int64_t h = 0; h < q.size; ++h) {
            const int64_t head = q.kv_head * group_ + q.first + h, i = r * q.size + h;
            float* to = y_ + ((q.row + r) * heads_.n_heads + head) * d;
            scaled(sums.acc + i * width_, 1.0f / sums.sum[i], d, to);
        }
}

void AttentionTile::add_part(const Queries& q, int64_t part, Prefetcher& to,
                             int64_t first_key) const {
    const int64_t keys = visible(q.row + q.n - 1, part);
    const auto offset = block_offsets(q, part);
    for (int64_t key = first_key; key < keys; key += kCacheBlock) to.add(cache_.keys + offset(key));
    for (int64_t key = 0; key < keys; key += kCacheBlock) to.add(cache_.values + offset(key));
}

void AttentionTile::add_rest(const Queries& q, int64_t part, Prefetcher& to) const {
    add_part(q, part, to, kBlocksAtOnce * kCacheBlock);
}

}  // namespace starcoder
