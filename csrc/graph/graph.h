// A model as a list of steps, recorded once and run for every batch.
//
// Calling one operation after the other from Python costs more than it computes when a single token
// is decoded. Here all steps become one schedule, which threads walk down without meeting Python.
// What a step computes is kernels.h's affair.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels.h"
#include "sys/scratch.h"
#include "sys/threads.h"

namespace starcoder {

// What changes from run to run: the batch, and the cache that it reads and extends.
struct Inputs {
    int64_t n;              // tokens
    const int32_t* tokens;  // (n)
    Rows rows;
    int64_t n_selected;
    const int32_t* selected;  // (n_selected) rows
    Cache cache;              // of layer 0
};

class Graph {
  public:
    using Value = int;  // a result that later steps take: rows of floats
    static constexpr Value kNone = -1;

    // (n, k) = rows of w for the tokens, plus rows of `positions` (n_positions, k) for where they
    // stand. `positions` is not copied.
    Value embed(const Matrix& w, const float* positions);
    // Norms are folded into the products that take them: only `linear` may.
    Value layer_norm(Value x, std::vector<float> weight, std::vector<float> bias, float eps);
    Value linear(const Matrix& w, Value x, std::vector<float> bias, Activation activation,
                 Value residual);
    // Stores the keys and values of qkv in layer `layer` of the cache, then attends to all of them.
    Value attention(Value qkv, int layer, const Heads& heads);
    // The selected rows alone.
    Value select(Value x);

    int64_t width(Value x) const { return info(x).width; }
    bool is_norm(Value x) const { return info(x).norm >= 0; }
    bool is_selected(Value x) const { return info(x).selected; }
    int n_values() const { return static_cast<int>(values_.size()); }

    // Runs all steps; `out` gets the last step's result. Calls from several threads take turns.
    void run(const Inputs& inputs, float* out);

  private:
    struct Info {
        int64_t width;
        bool selected;  // has a row for every selected row, otherwise for every token
        int norm;       // >= 0: not a result of its own, but x normalized
        Value x;
        // A product that only another product takes is rounded for that one as soon as it is made.
        bool product = false;
        int n_readers = 0;
        const Matrix* reader = nullptr;
    };
    struct StoredNorm {
        std::vector<float> weight, bias;
        float eps;
    };
    // One run: where values lie, and memory that the threads of a step share.
    struct Frame {
        const Inputs& inputs;
        std::vector<uint8_t*> at;
        uint8_t* shared;
        float* floats(Value v) const {
            return v < 0 ? nullptr : reinterpret_cast<float*>(at[static_cast<size_t>(v)]);
        }
        Rounded* rounded(Value v) const {
            return reinterpret_cast<Rounded*>(at[static_cast<size_t>(v)]);
        }
    };
    struct Step {
        std::function<void(Schedule&, const Frame&)> add;
        std::function<size_t(const Inputs&, int n_threads)> scratch;
        std::vector<Value> reads;
        Value writes = kNone;
        bool in_place = false;      // may write where its last input lies
        const Matrix* w = nullptr;  // what it multiplies with
    };

    // What a recorded schedule depends on, beside the numbers in its inputs.
    struct Key {
        int64_t n, n_selected, n_sequences, table_len, n_parts;
        std::vector<int32_t> row_starts;
        const void *isa, *keys, *values;
        int n_threads;
        bool operator==(const Key&) const = default;
    };

    Value record(Step step, int64_t width, bool selected);
    std::shared_ptr<const Schedule> schedule(const Inputs& inputs, float* out, int n_threads);
    Inputs copied(const Inputs& inputs);
    void note_reader(Value x, const Matrix* product);
    const Info& info(Value x) const { return values_[static_cast<size_t>(x)]; }
    int64_t nbytes(Value x, const Inputs& inputs) const;
    int64_t n_rows(Value x, const Inputs& inputs) const {
        return is_selected(x) ? inputs.n_selected : inputs.n;
    }
    std::vector<uint8_t*> place(const Inputs& inputs, float* out, Cutter& cutter) const;

    std::vector<Info> values_;
    std::vector<StoredNorm> norms_;
    std::vector<Step> steps_;
    std::vector<std::unique_ptr<Matrix>> matrices_;
    // What one run leaves for the next.
    struct Kept {
        Buffer memory;
        std::vector<int32_t> inputs;  // where a recorded schedule finds them
        std::shared_ptr<const Schedule> schedule;
        Key key{};
        float* out = nullptr;  // where that schedule leaves its result
    };

    Turn turn_;
    std::unique_ptr<Kept> kept_ = std::make_unique<Kept>();
    uint32_t forks_ = fork_count();  // when that was made
    double seconds_ = 0;             // that all runs took
};

}  // namespace starcoder
