#include "graph/graph.h"

#include <utility>

#include "graph/run.h"

namespace starcoder {

Graph::Graph() = default;
Graph::~Graph() = default;

Value Graph::add(Step step) {
    runner_ = nullptr;
    steps_.push_back(std::move(step));
    return static_cast<Value>(steps_.size()) - 1;
}

Value Graph::embed(const Matrix& w, const float* positions) {
    return add({.op = Op::Embed,
                .inputs = {},
                .weights = {.matrix = w, .table = positions},
                .width = w.n_cols()});
}

Value Graph::layer_norm(Value x, std::vector<float> weight, std::vector<float> bias, float eps) {
    const Step& from = at(steps_, x);
    return add({.op = Op::LayerNorm,
                .inputs = {x},
                .weights = {.scale = std::move(weight), .bias = std::move(bias)},
                .numbers = {.eps = eps},
                .width = from.width,
                .selected = from.selected});
}

Value Graph::rms_norm(Value x, std::vector<float> weight, float eps) {
    const Step& from = at(steps_, x);
    return add({.op = Op::RmsNorm,
                .inputs = {x},
                .weights = {.scale = std::move(weight)},
                .numbers = {.eps = eps},
                .width = from.width,
                .selected = from.selected});
}

Value Graph::linear(const Matrix& w, Value x, std::vector<float> bias, Activation activation,
                    Value residual) {
    std::vector<Value> inputs{x};
    if (residual != kNone) inputs.push_back(residual);
    return add({.op = Op::Linear,
                .inputs = std::move(inputs),
                .weights = {.matrix = w, .bias = std::move(bias)},
                .numbers = {.activation = activation},
                .width = w.n_rows(),
                .selected = at(steps_, x).selected});
}

Value Graph::gated(Value gate, Value up, Activation activation) {
    const Step& from = at(steps_, gate);
    return add({.op = Op::Gated,
                .inputs = {gate, up},
                .numbers = {.activation = activation},
                .width = from.width,
                .selected = from.selected});
}

Value Graph::concat(Value queries, Value keys, Value values) {
    const std::vector<Value> inputs{queries, keys, values};
    int64_t width = 0;
    for (const Value x : inputs) width += at(steps_, x).width;
    return add({.op = Op::Concat, .inputs = inputs, .width = width});
}

Value Graph::rotate(Value qkv, const Heads& heads, const float* table) {
    return add({.op = Op::Rotate,
                .inputs = {qkv},
                .weights = {.table = table},
                .numbers = {.heads = heads},
                .width = at(steps_, qkv).width});
}

Value Graph::attention(Value qkv, const Heads& heads) {
    return add({.op = Op::Attention,
                .inputs = {qkv},
                .numbers = {.heads = heads, .layer = n_layers_++},
                .width = heads.n_heads * heads.head_dim});
}

Value Graph::select(Value x) {
    return add({.op = Op::Select, .inputs = {x}, .width = at(steps_, x).width, .selected = true});
}

void Graph::run(const Batch& batch, float* out) {
    const std::lock_guard lock(turn_);
    if (runner_ && runner_->is_of_a_parent()) (void)runner_.release();  // leaked: see there
    if (!runner_) runner_ = std::make_unique<Runner>(steps_);
    runner_->run(batch, out);
}

}  // namespace starcoder
