// Attention over the blocks of the key/value cache, as loops around the inner ones of isa.h.
//
// The queries of a tile, a few rows of one sequence with all heads that share a key/value head,
// meet each block of 16 keys together, so that it is read and widened once for all of them.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd/isa.h"
#include "kernels.h"
#include "sys/schedule.h"
#include "sys/scratch.h"

namespace starcoder {

namespace {

constexpr int64_t kBlock = 16;  // positions in a block of the cache

// Keys that one softmax spans. Longer contexts are merged from parts of this length, always
// counted from position 0, so that a row's result does not depend on who computes it.
constexpr int64_t kPart = 256;

// Queries of a tile, if a row has not more: with keys, sums and weights of a part they stay in the
// second-level cache.
constexpr int64_t kTileQueries = 64;

// Blocks of keys that queries meet at once: two of them share each load of a query.
constexpr int64_t kBlocksAtOnce = 2;

// Values that queries meet at once: their sums wait in registers meanwhile.
constexpr int64_t kMixed = 128;

// With few rows the heads of a row are shared out too, so many at a time.
constexpr int64_t kHeads = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

const int32_t* block_table(const Rows& rows, int64_t i) {
    const int32_t* after = std::upper_bound(rows.row_starts, rows.row_starts + rows.n_sequences, i);
    return rows.block_tables + (after - rows.row_starts - 1) * rows.table_len;
}

void scaled(const float* __restrict x, float scale, int64_t n, float* __restrict to) {
    for (int64_t i = 0; i < n; ++i) to[i] = x[i] * scale;
}

int64_t n_parts(int64_t position) { return position / kPart + 1; }

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
    Workspace(Cutter& cutter, int64_t n_queries, int64_t width)
        : queries(cutter.take<float>(n_queries * width)),
          weights(cutter.take<float>(n_queries * kPart)),
          block(cutter.take<float>(std::max(kBlocksAtOnce * kBlock, kMixed) * width)),
          total(Sums::cut(cutter, n_queries, width)),
          next(Sums::cut(cutter, n_queries, width)) {}
};

struct alignas(64) Line {
    uint8_t bytes[64];
};

Workspace private_workspace(int64_t n_queries, int64_t width) {
    Cutter measure(nullptr);
    Workspace(measure, n_queries, width);
    Cutter cutter(scratch<Line>(measure.used() / sizeof(Line), 1)->bytes);
    return Workspace(cutter, n_queries, width);
}

// Query heads first .. first + size of rows row .. row + n, which share a key/value head.
struct Queries {
    int64_t row, n, kv_head, first, size;
    int64_t count() const { return n * size; }
};

class Attention {
  public:
    Attention(const float* qkv, const Heads& heads, const Rows& rows, const Cache& cache, float* y)
        : qkv_(qkv),
          heads_(heads),
          rows_(rows),
          cache_(cache),
          y_(y),
          group_(heads.n_heads / heads.n_kv_heads),
          width_(heads.width()) {}

    // A function of a part's keys: where the block of one begins, in the cache's keys as in its
    // values.
    auto places(const Queries& q, int64_t part) const {
        const int32_t* blocks = block_table(rows_, q.row) + part * kPart / kBlock;
        const int64_t head = q.kv_head * width_ * kBlock;
        return
            [this, blocks, head](int64_t key) { return cache_.block(blocks[key / kBlock]) + head; };
    }

    // All parts of the keys, one after the other.
    void whole(const Queries& q, const Workspace& space) const {
        load(q, space.queries);
        const int64_t parts = n_parts(rows_.positions[q.row + q.n - 1]);
        for (int64_t part = 0; part < parts; ++part) {
            Ahead ahead = nothing_ahead();
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

    // Queries (count, width), scaled by 1 / sqrt(head_dim).
    void load(const Queries& q, float* queries) const {
        const int64_t d = heads_.head_dim;
        const float scale = 1.0f / std::sqrt(static_cast<float>(d));
        for (int64_t r = 0; r < q.n; ++r) {
            const float* from =
                qkv_ + (q.row + r) * heads_.row() + (q.kv_head * group_ + q.first) * d;
            for (int64_t h = 0; h < q.size; ++h, queries += width_, from += d) {
                scaled(from, scale, d, queries);
                std::fill(queries + d, queries + width_, 0.0f);
                if (heads_.bf16) isa().round_pairs(queries, width_);
            }
        }
    }

    // One part of the keys, its sums left at `out`. `soon` is asked for meanwhile.
    void attend(const Queries& q, int64_t part, const Workspace& space, const Sums& out,
                Ahead& soon) const {
        const int64_t keys = visible(q.row + q.n - 1, part), count = q.count();
        const auto at = places(q, part);
        // Two steps of a part for each line of a block and each query: 8 of them share a step.
        soon.set_rate(divide_up(soon.n_blocks(), 2 * count));
        Ahead* ahead = soon.n_blocks() ? &soon : nullptr;
        for (int64_t key = 0; key < keys; key += kBlocksAtOnce * kBlock) {
            const int64_t n_blocks = std::min(kBlocksAtOnce, divide_up(keys - key, kBlock));
            if (heads_.bf16) {
                const uint16_t* pairs[kBlocksAtOnce];
                for (int64_t b = 0; b < n_blocks; ++b)
                    pairs[b] = cache_.keys + at(key + b * kBlock);
                isa().score_pairs(space.queries, count, width_, pairs, n_blocks, ahead, space.block,
                                  space.weights + key, kPart);
                continue;
            }
            for (int64_t b = 0; b < n_blocks; ++b)
                isa().widen_half(cache_.keys + at(key + b * kBlock), width_ * kBlock,
                                 space.block + b * width_ * kBlock);
            isa().scores(space.queries, count, width_, space.block, n_blocks, space.weights + key,
                         kPart);
        }
        for (int64_t r = 0; r < q.n; ++r)
            if (const int64_t seen = visible(q.row + r, part))
                for (int64_t i = r * q.size; i < (r + 1) * q.size; ++i) {
                    float* weights = space.weights + i * kPart;
                    const int64_t n = divide_up(seen, kBlock) * kBlock;
                    isa().softmax(weights, n, seen, out.max + i, out.sum + i);
                    if (heads_.bf16) isa().round_pairs(weights, n);
                }
        std::memset(out.acc, 0, static_cast<size_t>(count * width_) * sizeof(float));
        for (int64_t key = 0; key < keys; key += kMixed) {
            const uint16_t* values[kMixed / kBlock];
            for (int64_t i = 0; i < std::min(kMixed, keys - key); i += kBlock) {
                values[i / kBlock] = cache_.values + at(key + i);
                if (!heads_.bf16)
                    isa().widen_half(values[i / kBlock], width_ * kBlock, space.block + i * width_);
            }
            const auto seen = [&](int64_t r) {
                return std::clamp<int64_t>(visible(q.row + r, part) - key, 0, kMixed);
            };
            for (int64_t r = 0, n; r < q.n; r += n) {  // rows that see the same keys go together
                for (n = 1; r + n < q.n && seen(r + n) == seen(r);) ++n;
                const float* weights = space.weights + r * q.size * kPart;
                float* acc = out.acc + r * q.size * width_;
                if (heads_.bf16)
                    isa().mix_pairs(weights, kPart, key, seen(r), n * q.size, width_, values, ahead,
                                    space.block, acc);
                else
                    isa().mix(weights + key, kPart, seen(r), n * q.size, width_, space.block, acc);
            }
        }
    }

    // Merges the sums of all parts, in order.
    template <class SumsOf>
    void merge_parts(const Queries& q, SumsOf&& sums_of) const {
        const Sums total = sums_of(0);
        for (int64_t part = 1; part < n_parts(rows_.positions[q.row]); ++part)
            merge(total, sums_of(part), q.size);
        write(q, total);
    }

    void write(const Queries& q, const Sums& sums) const {
        const int64_t d = heads_.head_dim;
        for (int64_t r = 0; r < q.n; ++r)
            for (int64_t h = 0; h < q.size; ++h) {
                const int64_t head = q.kv_head * group_ + q.first + h, i = r * q.size + h;
                float* to = y_ + ((q.row + r) * heads_.n_heads + head) * d;
                scaled(sums.acc + i * width_, 1.0f / sums.sum[i], d, to);
            }
    }

    // What is asked for while a part is attended to: the next one; and of the first that a thread
    // takes, for which nobody could ask, what it does not need at once.
    Ahead nothing_ahead() const { return Ahead(width_ * kBlock); }
    void add_part(const Queries& q, int64_t part, Ahead& ahead, int64_t first_key = 0) const {
        const int64_t keys = visible(q.row + q.n - 1, part);
        const auto at = places(q, part);
        for (int64_t key = first_key; key < keys; key += kBlock) ahead.add(cache_.keys + at(key));
        for (int64_t key = 0; key < keys; key += kBlock) ahead.add(cache_.values + at(key));
    }
    void add_rest(const Queries& q, int64_t part, Ahead& ahead) const {
        add_part(q, part, ahead, kBlocksAtOnce * kBlock);
    }

  private:
    // Keys of a part that row `r` of the batch may see: none, some or all of them.
    int64_t visible(int64_t r, int64_t part) const {
        return std::clamp<int64_t>(rows_.positions[r] + 1 - part * kPart, 0, kPart);
    }

    void merge(const Sums& into, const Sums& part, int64_t n_queries) const {
        isa().merge(into.acc, into.max, into.sum, part.acc, part.max, part.sum, n_queries, width_);
    }

    const float* qkv_;
    Heads heads_;
    Rows rows_;
    Cache cache_;
    float* y_;
    int64_t group_, width_;
};

// How the work of one call is cut. Prompts: tiles of a few rows. Few rows over many keys, as in
// decoding: every row by itself, in heads and parts.
struct Plan {
    int64_t group, longest;         // query heads that share a key/value head; most parts of a row
    int64_t heads_at_once, chunks;  // of a row, where rows are few
    bool few;

    Plan(int64_t n, const Heads& heads, const Rows& rows, int n_threads)
        : group(heads.n_heads / heads.n_kv_heads) {
        longest = attention_parts(n, rows);
        const int64_t pieces = n * heads.n_kv_heads, enough = 4 * n_threads;
        few = n_threads > 1 && pieces < enough;
        heads_at_once = few && pieces * longest < enough ? std::min(kHeads, group) : group;
        chunks = divide_up(group, heads_at_once);
    }
};

int64_t n_tiles(const Rows& rows, int64_t rows_at_once) {
    int64_t n = 0;
    for (int64_t s = 0; s < rows.n_sequences; ++s)
        n += divide_up(rows.row_starts[s + 1] - rows.row_starts[s], rows_at_once);
    return n;
}

// Tile `i` of consecutive rows of one sequence: its first row, and the row after its last.
Pieces::Range tile_at(const Rows& rows, int64_t rows_at_once, int64_t i) {
    for (int64_t s = 0;; ++s) {
        const int64_t begin = rows.row_starts[s], end = rows.row_starts[s + 1];
        const int64_t here = divide_up(end - begin, rows_at_once);
        if (i < here)
            return {begin + i * rows_at_once, std::min(begin + (i + 1) * rows_at_once, end)};
        i -= here;
    }
}

// Tiles, taken by whichever thread is free.
void attend_tiles(Pieces& pieces, const Attention& task, int64_t tile_rows, int64_t group,
                  const Heads& heads, const Rows& rows) {
    const Workspace space = private_workspace(tile_rows * group, heads.width());
    for (const auto [piece, after] : pieces) {
        const auto [begin, end] = tile_at(rows, tile_rows, piece / heads.n_kv_heads);
        task.whole({begin, end - begin, piece % heads.n_kv_heads, 0, group}, space);
    }
}

// Few rows, cut into pieces: some heads of a row. A job is one part of a piece's keys; its sums
// wait in `shared` until all parts are there.
class Jobs {
  public:
    Jobs(int64_t n, const Heads& heads, const Rows& rows, const Plan& plan, uint8_t* shared)
        : heads_(heads),
          rows_(rows),
          plan_(plan),
          shared_(shared),
          n_pieces_(n * heads.n_kv_heads * plan.chunks) {}

    size_t nbytes() const {
        return static_cast<size_t>(count()) * Sums::nbytes(plan_.heads_at_once, heads_.width());
    }
    int64_t n_pieces() const { return n_pieces_; }
    int64_t count() const { return n_pieces_ * plan_.longest; }
    int64_t piece(int64_t job) const { return job / plan_.longest; }
    int64_t part(int64_t job) const { return job % plan_.longest; }
    // Shorter rows have fewer parts than the longest.
    int64_t n_parts_of(int64_t piece) const { return n_parts(rows_.positions[queries(piece).row]); }
    bool exists(int64_t job) const { return part(job) < n_parts_of(piece(job)); }

    Queries queries(int64_t piece) const {
        const int64_t first = piece % plan_.chunks * plan_.heads_at_once;
        return {piece / plan_.chunks / heads_.n_kv_heads, 1,
                piece / plan_.chunks % heads_.n_kv_heads, first,
                std::min(plan_.heads_at_once, plan_.group - first)};
    }
    Sums sums(int64_t piece, int64_t part) const {
        const auto i = static_cast<size_t>(piece * plan_.longest + part);
        Cutter cutter(shared_ + i * Sums::nbytes(plan_.heads_at_once, heads_.width()));
        return Sums::cut(cutter, plan_.heads_at_once, heads_.width());
    }

  private:
    Heads heads_;
    Rows rows_;
    Plan plan_;
    uint8_t* shared_;
    int64_t n_pieces_;
};

// A thread takes one more job before it begins with one, and asks for what that will read.
void attend_parts(Pieces& pieces, const Attention& task, const Jobs& jobs, const Workspace& space) {
    const auto take = [&jobs, &pieces] {
        while (pieces.take())
            if (jobs.exists(pieces.units().begin)) return pieces.units().begin;
        return jobs.count();
    };
    int64_t loaded = -1;  // the piece whose queries are in `space`
    bool first = true;
    int64_t job = pieces.units().begin;
    if (!jobs.exists(job)) job = take();
    for (int64_t next; job < jobs.count(); job = next, first = false) {
        next = take();
        const int64_t piece = jobs.piece(job), part = jobs.part(job);
        const Queries q = jobs.queries(piece);
        Ahead ahead = task.nothing_ahead();
        if (first) task.add_rest(q, part, ahead);
        if (next < jobs.count())
            task.add_part(jobs.queries(jobs.piece(next)), jobs.part(next), ahead);
        if (piece != loaded) task.load(q, space.queries);
        loaded = piece;
        const Sums sums = jobs.sums(piece, part);
        task.attend(q, part, space, sums, ahead);
        if (jobs.n_parts_of(piece) == 1) task.write(q, sums);
    }
}

// Heads begin .. end, counted over all pieces of `heads_at_once`.
void merge_heads(const Attention& task, const Jobs& jobs, int64_t heads_at_once, int64_t width,
                 int64_t begin, int64_t end) {
    for (int64_t piece, first; begin < end; begin += heads_at_once - first) {
        piece = begin / heads_at_once, first = begin % heads_at_once;
        const Queries all = jobs.queries(piece);
        const int64_t n = std::min({end - begin, heads_at_once - first, all.size - first});
        if (n <= 0 || jobs.n_parts_of(piece) == 1) continue;  // the last piece has fewer heads
        task.merge_parts({all.row, 1, all.kv_head, all.first + first, n},
                         [&](int64_t part) { return jobs.sums(piece, part).from(first, width); });
    }
}

}  // namespace

int64_t attention_parts(int64_t n, const Rows& rows) {
    return n_parts(*std::max_element(rows.positions, rows.positions + n));
}

size_t attention_scratch(int64_t n, const Heads& heads, const Rows& rows, int n_threads) {
    const Plan plan(n, heads, rows, n_threads);
    return plan.few ? Jobs(n, heads, rows, plan, nullptr).nbytes() : 0;
}

void attention(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads,
               const Rows& rows, const Cache& cache, float* y, uint8_t* shared) {
    const Attention task(qkv, heads, rows, cache, y);
    const Plan plan(n, heads, rows, schedule.n_threads());
    if (!plan.few) {
        const int64_t tile_rows = std::max<int64_t>(1, kTileQueries / plan.group);
        return schedule.add(n_tiles(rows, tile_rows) * heads.n_kv_heads, 1, [=](Pieces& pieces) {
            attend_tiles(pieces, task, tile_rows, plan.group, heads, rows);
        });
    }
    const Jobs jobs(n, heads, rows, plan, shared);
    schedule.add(jobs.count(), 1, [=](Pieces& pieces) {
        attend_parts(pieces, task, jobs, private_workspace(plan.heads_at_once, heads.width()));
    });
    if (plan.longest == 1) return;  // all is written
    const int64_t at_once = plan.heads_at_once, width = heads.width();
    schedule.add(jobs.n_pieces() * at_once, [=](Pieces& pieces) {
        for (const auto [begin, end] : pieces) merge_heads(task, jobs, at_once, width, begin, end);
    });
}

namespace {

void store_rows(const float* qkv, int64_t begin, int64_t end, const Heads& heads, const Rows& rows,
                const Cache& cache) {
    const int64_t d = heads.width(), hd = heads.head_dim;
    uint16_t* narrow = scratch<uint16_t>(static_cast<size_t>(hd), 0);
    for (int64_t i = begin; i < end; ++i)
        for (int64_t head = 0; head < heads.n_kv_heads; ++head) {
            const float* key = qkv + i * heads.row() + (heads.n_heads + head) * hd;
            const int64_t slot = rows.positions[i] % kBlock;
            const int64_t block = block_table(rows, i)[rows.positions[i] / kBlock];
            const int64_t at = cache.block(block) + head * d * kBlock;
            const float* value = key + heads.n_kv_heads * hd;
            uint16_t *keys = cache.keys + at, *values = cache.values + at;
            if (heads.bf16) {
                isa().round_bf16(key, hd, narrow);
                for (int64_t j = 0; j < hd; ++j)
                    keys[j / 2 * 2 * kBlock + 2 * slot + j % 2] = narrow[j];
                isa().round_bf16(value, hd, narrow);
                for (int64_t j = 0; j < hd; ++j)
                    values[slot / 2 * 2 * d + 2 * j + slot % 2] = narrow[j];
                continue;
            }
            isa().narrow(key, hd, narrow);
            for (int64_t j = 0; j < hd; ++j) keys[j * kBlock + slot] = narrow[j];
            isa().narrow(value, hd, values + slot * d);
        }
}

}  // namespace

void store_kv(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads, const Rows& rows,
              const Cache& cache) {
    schedule.add(n, [=](Pieces& pieces) {
        for (const auto [begin, end] : pieces) store_rows(qkv, begin, end, heads, rows, cache);
    });
}

}  // namespace starcoder
