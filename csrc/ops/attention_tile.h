// Attention of one tile: a few rows of one sequence, with the query heads that share a key/value
// head, over parts of 256 keys each.
//
// The queries of a tile meet each block of 16 keys together, so that it is read and widened once
// for all of them. Each part has a softmax of its own; parts are merged in order.
#pragma once

#include "kernels.h"
#include "simd/isa.h"
#include "sys/scratch.h"
#include "types/packed.h"

namespace starcoder {

inline constexpr int64_t kCacheBlock = 16;  // positions in a block of the cache

// Keys that one softmax spans. Longer contexts are merged from parts of this length, always counted
// from position 0, so that a row's result does not depend on how the work is shared.
inline constexpr int64_t kPart = 256;
inline int64_t n_parts(int64_t position) { return position / kPart + 1; }

// The cache blocks of the sequence of row i.
const int32_t* block_table(const Rows& rows, int64_t i);

// What parts of the keys add up to: acc (queries, width), and the softmax's maximum and sum of
// each.
struct Sums {
    float *acc, *max, *sum;

    static Sums cut(Cutter& cutter, int64_t n_queries, int64_t width) {
        Sums sums{};
        sums.acc = cutter.take<float>(n_queries * width);
        sums.max = cutter.take<float>(n_queries);
        sums.sum = cutter.take<float>(n_queries);
        return sums;
    }
    static size_t nbytes(int64_t n_queries, int64_t width) {
        Cutter measure(nullptr);
        cut(measure, n_queries, width);
        return measure.used();
    }
    Sums from(int64_t query, int64_t width) const {
        return {acc + query * width, max + query, sum + query};
    }
};

// What one thread needs for one tile.
struct Workspace {
    float *queries, *weights, *block;
    Sums total, next;

    Workspace(Cutter& cutter, int64_t n_queries, int64_t width);
    static Workspace of_this_thread(int64_t n_queries, int64_t width);
};

// Query heads first .. first + size of rows row .. row + n, which share a key/value head.
struct Queries {
    int64_t row, n, kv_head, first, size;
    int64_t count() const { return n * size; }
};

class AttentionTile {
  public:
    AttentionTile(const float* qkv, const Heads& heads, const Rows& rows, const Cache& cache,
                  float* y);

    // All parts of the keys, one after the other.
    void attend_all(const Queries& q, const Workspace& space) const;

    // Queries (count, width), scaled by 1 / sqrt(head_dim).
    void load(const Queries& q, float* queries) const;
    // One part of the keys, its sums left at `out`. The prefetcher runs meanwhile.
    void attend(const Queries& q, int64_t part, const Workspace& space, const Sums& out,
                Prefetcher& prefetcher) const;
    // Writes the results, from the sums of all parts.
    void write(const Queries& q, const Sums& sums) const;

    // Merges the sums of all parts, in order, and writes the results.
    template <class SumsOf>
    void merge_parts(const Queries& q, SumsOf&& sums_of) const {
        const Sums total = sums_of(0);
        for (int64_t part = 1; part < n_parts(rows_.positions[q.row]); ++part)
            merge(total, sums_of(part), q.size);
        write(q, total);
    }

    // What to prefetch while a part is attended to: the next one; and of the first that a thread
    // takes, what it does not need at once.
    Prefetcher prefetcher() const { return Prefetcher(width_ * kCacheBlock); }
    void add_part(const Queries& q, int64_t part, Prefetcher& to, int64_t first_key = 0) const;
    void add_rest(const Queries& q, int64_t part, Prefetcher& to) const;

  private:
    auto block_offsets(const Queries& q, int64_t part) const;
    int64_t visible(int64_t r, int64_t part) const;
    void score(const Queries& q, int64_t part, const Workspace& space,
               Prefetcher* prefetcher) const;
    void add_values(const Queries& q, int64_t part, const Workspace& space, float* acc,
                    Prefetcher* prefetcher) const;
    void merge(const Sums& into, const Sums& part, int64_t n_queries) const {
        isa().merge(into.acc, into.max, into.sum, part.acc, part.max, part.sum, n_queries, width_);
    }

    const float* qkv_;
    Heads heads_;
    Rows rows_;
    Cache cache_;
    float* y_;
    int64_t group_, width_;  // query heads that share a key/value head; dimensions in the cache
};

}  // namespace starcoder
