// Attention over the key/value cache: how the tiles and parts of a call are shared out.
#include <algorithm>

#include "kernels.h"
#include "ops/attention_tile.h"
#include "sys/schedule.h"

namespace starcoder {

namespace {

// Queries of a tile, if a row has not more: with keys, sums and weights of a part they stay in the
// second-level cache.
constexpr int64_t kTileQueries = 64;

// With few rows the heads of a row are shared out too, so many at a time.
constexpr int64_t kHeads = 8;

// How the work of one call is cut. Prompts: tiles of a few rows. Few rows over many keys, as in
// decoding (split): every row by itself, in heads and parts.
struct Plan {
    int64_t group, longest;  // query heads that share a key/value head; most parts of a row
    int64_t heads_at_once, head_groups;  // of a row, where it is split
    bool split;

    Plan(int64_t n, const Heads& heads, const Rows& rows, int n_threads)
        : group(heads.n_heads / heads.n_kv_heads) {
        longest = attention_parts(n, rows);
        const int64_t pieces = n * heads.n_kv_heads, enough = 4 * n_threads;
        split = n_threads > 1 && pieces < enough;
        heads_at_once = split && pieces * longest < enough ? std::min(kHeads, group) : group;
        head_groups = divide_up(group, heads_at_once);
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
void attend_tiles(Pieces& pieces, const AttentionTile& task, int64_t tile_rows, int64_t group,
                  const Heads& heads, const Rows& rows) {
    const Workspace space = Workspace::of_this_thread(tile_rows * group, heads.width());
    for (const auto [piece, after] : pieces) {
        const auto [begin, end] = tile_at(rows, tile_rows, piece / heads.n_kv_heads);
        task.attend_all({begin, end - begin, piece % heads.n_kv_heads, 0, group}, space);
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
          n_pieces_(n * heads.n_kv_heads * plan.head_groups) {}

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
        const int64_t first = piece % plan_.head_groups * plan_.heads_at_once;
        return {piece / plan_.head_groups / heads_.n_kv_heads, 1,
                piece / plan_.head_groups % heads_.n_kv_heads, first,
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

// A thread takes one more job before it begins with one, and prefetches what that will read.
void attend_parts(Pieces& pieces, const AttentionTile& task, const Jobs& jobs,
                  const Workspace& space) {
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
        Prefetcher ahead = task.prefetcher();
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
void merge_heads(const AttentionTile& task, const Jobs& jobs, int64_t heads_at_once, int64_t width,
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
    return plan.split ? Jobs(n, heads, rows, plan, nullptr).nbytes() : 0;
}

void attention(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads,
               const Rows& rows, const Cache& cache, float* y, uint8_t* shared) {
    const AttentionTile task(qkv, heads, rows, cache, y);
    const Plan plan(n, heads, rows, schedule.n_threads());
    if (!plan.split) {
        const int64_t tile_rows = std::max<int64_t>(1, kTileQueries / plan.group);
        return schedule.add(n_tiles(rows, tile_rows) * heads.n_kv_heads, 1, [=](Pieces& pieces) {
            attend_tiles(pieces, task, tile_rows, plan.group, heads, rows);
        });
    }
    const Jobs jobs(n, heads, rows, plan, shared);
    schedule.add(jobs.count(), 1, [=](Pieces& pieces) {
        attend_parts(pieces, task, jobs,
                     Workspace::of_this_thread(plan.heads_at_once, heads.width()));
    });
    if (plan.longest == 1) return;  // all is written
    const int64_t at_once = plan.heads_at_once, width = heads.width();
    schedule.add(jobs.n_pieces() * at_once, [=](Pieces& pieces) {
        for (const auto [begin, end] : pieces) merge_heads(task, jobs, at_once, width, begin, end);
    });
}

}  // namespace starcoder
