// How a model is run: the schedule is made for a batch, or kept from the last one of its shape.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "graph/run.h"
#include "simd/isa.h"

namespace starcoder {

namespace {

// What a run of few tokens needs is kept for the next; what a prompt needs is given back.
constexpr size_t kKept = 4 << 20;

// Up to so many tokens a schedule is kept for the next run: to make it takes a microsecond for each
// step, and what a thread has read of it stays in its caches.
constexpr int64_t kKeptTokens = 16;

}  // namespace

Runner::Key Runner::Key::of(const Batch& batch, int n_threads) {
    const Rows& rows = batch.rows;
    return {batch.n,
            batch.n_selected,
            rows.n_sequences,
            rows.table_len,
            attention_parts(batch.n, rows),
            {rows.row_starts, rows.row_starts + rows.n_sequences + 1},
            &isa(),
            batch.cache.keys,
            batch.cache.values,
            n_threads};
}

// The same batch, in the place where the next one will be too.
Batch Runner::copied(const Batch& in) {
    const auto n = static_cast<size_t>(in.n), sequences = static_cast<size_t>(in.rows.n_sequences);
    const size_t table = sequences * static_cast<size_t>(in.rows.table_len);
    inputs_.resize(2 * n + sequences + 1 + table + static_cast<size_t>(in.n_selected));
    int32_t* to = inputs_.data();
    const auto copy = [&to](const int32_t* from, size_t count) {
        return std::copy_n(from, count, std::exchange(to, to + count)) - count;
    };
    Batch out = in;
    out.tokens = copy(in.tokens, n);
    out.rows.positions = copy(in.rows.positions, n);
    out.rows.row_starts = copy(in.rows.row_starts, sequences + 1);
    out.rows.block_tables = copy(in.rows.block_tables, table);
    out.selected = copy(in.selected, static_cast<size_t>(in.n_selected));
    return out;
}

// All steps, for batches of this shape. Without `out` the result stays at `result_`.
std::shared_ptr<const Schedule> Runner::schedule(const Batch& batch, float* out, int n_threads) {
    const Shape shape{batch.n, batch.n_selected};
    const size_t last = steps_.size() - 1;
    size_t shared_bytes = 0;
    for (size_t i = 0; i < steps_.size(); ++i)
        shared_bytes = std::max(shared_bytes, scratch_bytes(i, batch, n_threads));
    const auto cut = [&](Cutter& cutter) {
        auto* to = reinterpret_cast<uint8_t*>(out);
        if (!out) to = cutter.take<uint8_t>(result_bytes(steps_, fused_, last, shape));
        Frame frame{batch, place(steps_, fused_, shape, to, cutter), nullptr};
        frame.shared = cutter.take<uint8_t>(static_cast<int64_t>(shared_bytes));
        return frame;
    };
    Cutter measure(nullptr);
    cut(measure);
    Cutter cutter(memory_.of(measure.used()));
    const Frame frame = cut(cutter);
    result_ = reinterpret_cast<float*>(frame.at[last]);
    const auto schedule = std::make_shared<Schedule>(n_threads);
    for (size_t i = 0; i < steps_.size(); ++i) append(i, frame, *schedule);
    return schedule;
}

void Runner::run(const Batch& batch, float* out) {
    Call call;
    if (batch.n > kKeptTokens) {
        kept_ = nullptr;
        call.run(schedule(batch, out, call.n_threads()));
    } else {
        run_kept(batch, out, call);
    }
    if (memory_.size() > kKept) {
        kept_ = nullptr;
        memory_.release();
    }
}

void Runner::run_kept(const Batch& batch, float* out, Call& call) {
    Key key = Key::of(batch, call.n_threads());
    const Batch here = copied(batch);
    if (!kept_ || key != key_) {
        kept_ = nullptr;
        kept_ = schedule(here, nullptr, call.n_threads());
        key_ = std::move(key);
    }
    call.run(kept_);
    const int64_t nbytes =
        result_bytes(steps_, fused_, steps_.size() - 1, {batch.n, batch.n_selected});
    std::memcpy(out, result_, static_cast<size_t>(nbytes));
}

}  // namespace starcoder
