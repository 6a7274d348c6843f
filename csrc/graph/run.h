// A run of a model: from steps to a schedule, which is kept for the shapes that decoding repeats.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "graph/graph.h"
#include "graph/plan.h"
#include "sys/schedule.h"

namespace starcoder {

class Runner {
  public:
    explicit Runner(const Steps& steps) : steps_(steps), fused_(fuse(steps)) {}

    void run(const Batch& batch, float* out);

    // In a forked child: a run that never ends may have been changing this, so it is not to be
    // used, nor freed.
    bool is_of_a_parent() const { return forks_ != fork_count(); }

  private:
    // One run: where results lie, and memory that the threads of a step share.
    struct Frame {
        const Batch& batch;
        std::vector<uint8_t*> at;
        uint8_t* shared;
        float* floats(Value v) const {
            return v == kNone ? nullptr : reinterpret_cast<float*>(at[static_cast<size_t>(v)]);
        }
    };

    // What a kept schedule depends on, beside the numbers in its inputs.
    struct Key {
        int64_t n, n_selected, n_sequences, table_len, n_parts;
        std::vector<int32_t> row_starts;
        const void *table, *keys, *values;  // of inner loops; of the cache
        int n_threads;
        bool operator==(const Key&) const = default;
        static Key of(const Batch& batch, int n_threads);
    };

    void run_kept(const Batch& batch, float* out, Call& call);
    std::shared_ptr<const Schedule> schedule(const Batch& batch, float* out, int n_threads);
    Batch copied(const Batch& batch);

    // run.cpp: what each operation is
    void append(size_t i, const Frame& frame, Schedule& schedule) const;
    size_t scratch_bytes(size_t i, const Batch& batch, int n_threads) const;
    Input input_of(size_t i, const Frame& frame) const;

    const Steps& steps_;
    const std::vector<Fused> fused_;
    const uint32_t forks_ = fork_count();

    // What one run leaves for the next.
    Buffer memory_;
    std::vector<int32_t> inputs_;  // where a kept schedule finds them
    std::shared_ptr<const Schedule> kept_;
    Key key_{};
    float* result_ = nullptr;  // where that schedule leaves its result
};

}  // namespace starcoder
