// A model, recorded once as steps and run for every batch.
//
// Calling one operation after the other from Python costs more than it computes when a single token
// is decoded. Here all steps become one schedule, which threads walk down without meeting Python.
// What a step computes is kernels.h's affair.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "graph/ir.h"
#include "sys/threads.h"

namespace starcoder {

// What changes from run to run: the batch, and the cache that it reads and extends.
struct Batch {
    int64_t n;              // tokens
    const int32_t* tokens;  // (n)
    Rows rows;
    int64_t n_selected;
    const int32_t* selected;  // (n_selected) rows
    Cache cache;              // of layer 0
};

class Runner;  // run.h

class Graph {
  public:
    Graph();
    ~Graph();

    // ---- recording: each adds a step ----

    // (n, k) = rows of w for the tokens, plus rows of `positions` (n_positions, k), if there are
    // any, for where they stand.
    Value embed(const Matrix& w, const float* positions);
    Value layer_norm(Value x, std::vector<float> weight, std::vector<float> bias, float eps);
    Value rms_norm(Value x, std::vector<float> weight, float eps);
    // (n, m) = activation(x . w^T + bias) + residual; without bias it is empty, without residual
    // kNone.
    Value linear(const Matrix& w, Value x, std::vector<float> bias, Activation activation,
                 Value residual);
    // activation(gate) * up
    Value gated(Value gate, Value up, Activation activation);
    // (n, queries | keys | values), from products of their own.
    Value concat(Value queries, Value keys, Value values);
    // Queries and keys of qkv turned by their positions: `table` is (n_positions, 2, head_dim / 2),
    // cosines, then sines.
    Value rotate(Value qkv, const Heads& heads, const float* table);
    // Stores the keys and values of qkv in the next layer of the cache, then attends to all of
    // them.
    Value attention(Value qkv, const Heads& heads);
    // The selected rows alone.
    Value select(Value x);

    const Steps& steps() const { return steps_; }
    int n_layers() const { return n_layers_; }

    // Runs all steps; `out` gets the last step's result. Calls from several threads take turns.
    void run(const Batch& batch, float* out);

  private:
    Value add(Step step);

    Steps steps_;
    int n_layers_ = 0;

    Turn turn_;
    std::unique_ptr<Runner> runner_;  // made by the first run
};

}  // namespace starcoder
