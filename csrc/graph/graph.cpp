#include "graph/graph.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <utility>

#include "sys/clock.h"
#include "simd/isa.h"
#include "sys/schedule.h"
#include "sys/weight_memory.h"

namespace starcoder {

namespace {

// What a run of few tokens needs is kept for the next; what a prompt needs is given back.
constexpr size_t kKept = 4 << 20;

// Up to so many tokens a schedule is kept for the next run: to make it takes a millionth of a
// second for each step, and what a thread has read of it stays in its caches.
constexpr int64_t kRecorded = 16;

// Weights may wait for huge pages (chunk.h), and one decodes 0.8 to 0.97 of the tokens a second
// meanwhile. To gather 700 MB takes 0.9 to 1.6 s, as much as short answers lose without. So a graph
// that has run for ten seconds spends a tenth of its time on it.
constexpr double kGatherAfter = 10, kGatherShare = 0.1;

const float* data_or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

}  // namespace

Graph::Value Graph::record(Step step, int64_t width, bool selected) {
    step.writes = n_values();
    kept_->schedule = nullptr;
    values_.push_back({width, selected, -1, kNone});
    values_.back().product = step.w != nullptr && !step.in_place;
    steps_.push_back(std::move(step));
    return n_values() - 1;
}

// `product`: the matrix by which x itself is multiplied; null for every other use of x.
void Graph::note_reader(Value x, const Matrix* product) {
    Info& info = values_[static_cast<size_t>(x)];
    const bool alone = ++info.n_readers == 1 && info.product && product;
    info.reader = alone && rounded_bytes(*product, 1) > 0 ? product : nullptr;
}

int64_t Graph::nbytes(Value x, const Inputs& inputs) const {
    const int64_t n = n_rows(x, inputs);
    if (const Matrix* reader = info(x).reader)
        return static_cast<int64_t>(rounded_bytes(*reader, n));
    return n * width(x) * int64_t{sizeof(float)};
}

Graph::Value Graph::embed(const Matrix& w, const float* positions) {
    const Matrix& matrix = *matrices_.emplace_back(std::make_unique<Matrix>(w));
    const Value y = n_values();
    Step step;
    step.add = [&matrix, positions, y](Schedule& schedule, const Frame& frame) {
        const Inputs& in = frame.inputs;
        starcoder::embed(schedule, matrix, in.tokens, in.n, positions, in.rows.positions,
                         frame.floats(y));
    };
    return record(std::move(step), w.n_cols(), false);
}

Graph::Value Graph::layer_norm(Value x, std::vector<float> weight, std::vector<float> bias,
                               float eps) {
    note_reader(x, nullptr);
    norms_.push_back({std::move(weight), std::move(bias), eps});
    values_.push_back({width(x), is_selected(x), static_cast<int>(norms_.size()) - 1, x});
    return n_values() - 1;
}

Graph::Value Graph::linear(const Matrix& w, Value x, std::vector<float> bias, Activation activation,
                           Value residual) {
    const Matrix& matrix = *matrices_.emplace_back(std::make_unique<Matrix>(w));
    const int norm_at = info(x).norm;
    if (norm_at >= 0)
        x = info(x).x;
    else
        note_reader(x, &matrix);
    if (residual != kNone) note_reader(residual, nullptr);
    const Value y = n_values();
    const auto input = [this, norm_at, x](float* floats, Rounded* rounded) -> Input {
        if (info(x).reader) return {nullptr, {}, rounded};
        if (norm_at < 0) return {floats, {}, nullptr};
        const StoredNorm& stored = norms_[static_cast<size_t>(norm_at)];
        return {floats, Norm{stored.weight.data(), stored.bias.data(), stored.eps}, nullptr};
    };
    Step step;
    step.add = [=, this, &matrix, bias = std::move(bias)](Schedule& schedule, const Frame& frame) {
        const Matrix* reader = info(y).reader;
        const Output output{reader ? nullptr : frame.floats(y), reader ? frame.rounded(y) : nullptr,
                            reader};
        starcoder::linear(schedule, matrix, input(frame.floats(x), frame.rounded(x)),
                          n_rows(y, frame.inputs), data_or_null(bias), activation,
                          frame.floats(residual), output, frame.shared);
    };
    step.scratch = [=, this, &matrix](const Inputs& inputs, int) {
        if (info(x).reader) return size_t{0};
        return linear_scratch(matrix, input(nullptr, nullptr), n_rows(y, inputs));
    };
    step.reads = {x};
    if (residual != kNone) step.reads.push_back(residual);
    step.in_place = residual != kNone;
    step.w = &matrix;
    return record(std::move(step), w.n_rows(), is_selected(x));
}

Graph::Value Graph::attention(Value qkv, int layer, const Heads& heads) {
    note_reader(qkv, nullptr);
    const Value y = n_values();
    Step step;
    step.add = [=](Schedule& schedule, const Frame& frame) {
        const Inputs& in = frame.inputs;
        Cache cache = in.cache;
        cache.keys += layer * Cache::kRun * cache.block_len;
        cache.values += layer * Cache::kRun * cache.block_len;
        const float* from = frame.floats(qkv);
        store_kv(schedule, from, in.n, heads, in.rows, cache);
        starcoder::attention(schedule, from, in.n, heads, in.rows, cache, frame.floats(y),
                             frame.shared);
    };
    step.scratch = [=](const Inputs& in, int n_threads) {
        return attention_scratch(in.n, heads, in.rows, n_threads);
    };
    step.reads = {qkv};
    return record(std::move(step), heads.n_heads * heads.head_dim, false);
}

Graph::Value Graph::select(Value x) {
    note_reader(x, nullptr);
    const Value y = n_values();
    const auto k = static_cast<size_t>(width(x));
    Step step;
    step.add = [=](Schedule& schedule, const Frame& frame) {
        const float* from = frame.floats(x);
        float* to = frame.floats(y);
        const int32_t* selected = frame.inputs.selected;
        schedule.add(frame.inputs.n_selected, [=](Pieces& pieces) {
            for (const auto [begin, end] : pieces)
                for (int64_t i = begin; i < end; ++i)
                    std::memcpy(to + static_cast<size_t>(i) * k,
                                from + static_cast<size_t>(selected[i]) * k, k * sizeof(float));
        });
    };
    step.reads = {x};
    return record(std::move(step), width(x), true);
}

// Where each value lies. Memory of values that nobody reads any more is used again.
std::vector<uint8_t*> Graph::place(const Inputs& inputs, float* out, Cutter& cutter) const {
    std::vector<size_t> last(values_.size(), 0);
    for (size_t i = 0; i < steps_.size(); ++i)
        for (const Value v : steps_[i].reads) last[static_cast<size_t>(v)] = i;
    struct Free {
        int64_t nbytes;
        uint8_t* at;
    };
    std::vector<Free> free;
    std::vector<uint8_t*> at(values_.size(), nullptr);
    for (size_t i = 0; i < steps_.size(); ++i) {
        const Step& step = steps_[i];
        const auto y = static_cast<size_t>(step.writes);
        const Value in_place = step.in_place ? step.reads.back() : kNone;
        const bool reuses = in_place != kNone && in_place != step.reads[0] &&
                            last[static_cast<size_t>(in_place)] == i;
        if (i + 1 == steps_.size()) {
            at[y] = reinterpret_cast<uint8_t*>(out);
        } else if (reuses) {
            at[y] = at[static_cast<size_t>(in_place)];
        } else {
            const int64_t wanted = nbytes(step.writes, inputs);
            const auto fits = std::find_if(free.begin(), free.end(),
                                           [&](const Free& f) { return f.nbytes == wanted; });
            if (fits != free.end()) {
                at[y] = fits->at;
                free.erase(fits);
            } else {
                at[y] = cutter.take<uint8_t>(wanted);
            }
        }
        for (const Value v : step.reads)
            if (last[static_cast<size_t>(v)] == i && !(reuses && v == in_place))
                free.push_back({nbytes(v, inputs), at[static_cast<size_t>(v)]});
    }
    return at;
}

// Inputs that the next run will have in the same place.
Inputs Graph::copied(const Inputs& in) {
    const auto n = static_cast<size_t>(in.n), sequences = static_cast<size_t>(in.rows.n_sequences);
    const size_t table = sequences * static_cast<size_t>(in.rows.table_len);
    kept_->inputs.resize(2 * n + sequences + 1 + table + static_cast<size_t>(in.n_selected));
    int32_t* to = kept_->inputs.data();
    const auto copy = [&to](const int32_t* from, size_t count) {
        return std::copy_n(from, count, std::exchange(to, to + count)) - count;
    };
    Inputs out = in;
    out.tokens = copy(in.tokens, n);
    out.rows.positions = copy(in.rows.positions, n);
    out.rows.row_starts = copy(in.rows.row_starts, sequences + 1);
    out.rows.block_tables = copy(in.rows.block_tables, table);
    out.selected = copy(in.selected, static_cast<size_t>(in.n_selected));
    return out;
}

// All steps, for inputs of this shape.
std::shared_ptr<const Schedule> Graph::schedule(const Inputs& inputs, float* out, int n_threads) {
    size_t shared_bytes = 0;
    for (const Step& step : steps_)
        if (step.scratch) shared_bytes = std::max(shared_bytes, step.scratch(inputs, n_threads));
    const auto last_bytes = static_cast<int64_t>(nbytes(steps_.back().writes, inputs));
    const auto cut = [&](Cutter& cutter) {
        float* to = out ? out : reinterpret_cast<float*>(cutter.take<uint8_t>(last_bytes));
        Frame frame{inputs, place(inputs, to, cutter), nullptr};
        frame.shared = cutter.take<uint8_t>(static_cast<int64_t>(shared_bytes));
        return frame;
    };
    Cutter measure(nullptr);
    cut(measure);
    Cutter cutter(kept_->memory.of(measure.used()));
    const Frame frame = cut(cutter);
    kept_->out = frame.floats(steps_.back().writes);
    const auto schedule = std::make_shared<Schedule>(n_threads);
    for (const Step& step : steps_) step.add(*schedule, frame);
    return schedule;
}

void Graph::run(const Inputs& inputs, float* out) {
    const std::lock_guard lock(turn_);
    if (forks_ != fork_count()) {  // a run that nobody ends may have been changing it: it is leaked
        (void)kept_.release();
        kept_ = std::make_unique<Kept>();
        forks_ = fork_count();
    }
    const auto start = Clock::now();
    {
        Call call;
        if (inputs.n > kRecorded) {
            kept_->schedule = nullptr;
            call.run(schedule(inputs, out, call.n_threads()));
        } else {
            const Rows& rows = inputs.rows;
            Key key{inputs.n,
                    inputs.n_selected,
                    rows.n_sequences,
                    rows.table_len,
                    attention_parts(inputs.n, rows),
                    {rows.row_starts, rows.row_starts + rows.n_sequences + 1},
                    &isa(),
                    inputs.cache.keys,
                    inputs.cache.values,
                    call.n_threads()};
            const Inputs here = copied(inputs);
            if (!kept_->schedule || key != kept_->key) {
                kept_->schedule = nullptr;
                kept_->schedule = schedule(here, nullptr, call.n_threads());
                kept_->key = std::move(key);
            }
            call.run(kept_->schedule);
            const int64_t nbytes_out = nbytes(steps_.back().writes, inputs);
            std::memcpy(out, kept_->out, static_cast<size_t>(nbytes_out));
        }
        if (kept_->memory.size() > kKept) {
            kept_->schedule = nullptr;
            kept_->memory.release();
        }
    }
    const double seconds = seconds_since(start);
    seconds_ += seconds;
    if (seconds_ > kGatherAfter) gather_weights(kGatherShare * seconds);
}

}  // namespace starcoder
