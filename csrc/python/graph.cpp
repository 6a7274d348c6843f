// The graph of a model, as Python records and runs it.
#include "graph/graph.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "python/checks.h"
#include "python/interpreter.h"
#include "sys/clock.h"
#include "sys/weight_memory.h"

namespace starcoder {

namespace {

using namespace nb::literals;

using Vector = In<float, 1>;

std::vector<float> copy(const Vector& x) { return {x.data(), x.data() + x.size()}; }

// A graph, and what its runs are checked against.
class CheckedGraph {
  public:
    Value embed(const Matrix& w, Maybe<In<float, 2>> positions) {
        require(n_vocab_ == 0, "embed: once");
        require(!positions || size(*positions, 1) == w.n_cols(),
                "embed: positions (n_positions, k)");
        n_vocab_ = w.n_rows();
        if (positions) bound_positions(size(*positions, 0));
        return graph_.embed(w, positions ? positions->data() : nullptr);
    }
    Value layer_norm(Value x, Vector weight, Vector bias, float eps) {
        const int64_t k = step(x).width;
        require(size(weight, 0) == k && size(bias, 0) == k, "layer_norm: weight and bias (k)");
        return graph_.layer_norm(x, copy(weight), copy(bias), eps);
    }
    Value rms_norm(Value x, Vector weight, float eps) {
        require(size(weight, 0) == step(x).width, "rms_norm: weight (k)");
        return graph_.rms_norm(x, copy(weight), eps);
    }
    Value linear(const Matrix& w, Value x, Maybe<Vector> bias, int activation,
                 Maybe<Value> residual) {
        require(step(x).width == w.n_cols(), "linear: x (n, k)");
        require(!bias || size(*bias, 0) == w.n_rows(), "linear: bias (m)");
        require(!residual || step(*residual).width == w.n_rows(), "linear: residual (n, m)");
        require(!residual || step(*residual).selected == step(x).selected,
                "linear: x and residual of the same rows");
        return graph_.linear(w, x, bias ? copy(*bias) : std::vector<float>(),
                             checked_activation(activation), residual.value_or(kNone));
    }
    Value gated(Value gate, Value up, int activation) {
        require(step(gate).width == step(up).width && step(gate).selected == step(up).selected,
                "gated: gate and up (n, m)");
        return graph_.gated(gate, up, checked_activation(activation));
    }
    Value concat(Value queries, Value keys, Value values) {
        require(!step(queries).selected && !step(keys).selected && !step(values).selected,
                "concat: queries, keys and values of all rows");
        return graph_.concat(queries, keys, values);
    }
    Value rotate(Value qkv, int n_heads, int n_kv_heads, In<float, 3> table) {
        const Heads heads = checked_heads(step(qkv).width, n_heads, n_kv_heads, false);
        require(!step(qkv).selected, "rotate: qkv of all rows");
        require(
            heads.head_dim % 2 == 0 && size(table, 1) == 2 && size(table, 2) == heads.head_dim / 2,
            "rotate: table (n_positions, 2, head_dim / 2)");
        bound_positions(size(table, 0));
        return graph_.rotate(qkv, heads, table.data());
    }
    Value attention(Value qkv, int n_heads, int n_kv_heads, bool bf16) {
        const Heads heads = checked_heads(step(qkv).width, n_heads, n_kv_heads, bf16);
        require(!step(qkv).selected, "attention: qkv of all rows");
        require(graph_.n_layers() == 0 ||
                    (heads.width() == heads_.width() && heads.n_kv_heads == heads_.n_kv_heads),
                "attention: the same keys and values in every layer");
        heads_ = heads;
        return graph_.attention(qkv, heads);
    }
    Value select(Value x) {
        require(!step(x).selected, "select: x of all rows");
        return graph_.select(x);
    }

    std::string text() const { return to_text(graph_.steps()); }

    void run(In<int32_t, 1> tokens, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
             In<int32_t, 2> block_tables, In<int32_t, 1> selected, Out<uint16_t, 6> keys,
             Out<uint16_t, 6> values, Out<float, 2> out) {
        const int64_t n = size(tokens, 0), r = size(selected, 0), runs = size(keys, 0);
        require(!graph_.steps().empty(), "graph: has no steps");
        const Step& last = graph_.steps().back();
        require(n > 0, "graph: tokens (n), one or more");
        for (int64_t i = 0; i < n; ++i)
            require(tokens.data()[i] >= 0 && tokens.data()[i] < n_vocab_,
                    "graph: tokens from 0 to n_vocab - 1");
        for (int64_t i = 0; i < r; ++i)
            require(selected.data()[i] >= 0 && selected.data()[i] < n, "graph: rows of the batch");
        const Rows rows = checked_rows(n, runs * Cache::kRun, positions, row_starts, block_tables);
        for (int64_t i = 0; n_positions_ && i < n; ++i)
            require(positions.data()[i] < *n_positions_, "graph: positions below n_positions");
        const int64_t kv = heads_.n_kv_heads, width = heads_.width(), layers = graph_.n_layers();
        const auto heads = [&](const auto& blocks) {
            return size(blocks, 0) == runs && size(blocks, 1) == layers &&
                   size(blocks, 2) == Cache::kRun && size(blocks, 3) == kv;
        };
        require(heads(keys) && size(keys, 4) == width && size(keys, 5) == 16 && heads(values) &&
                    size(values, 4) == 16 && size(values, 5) == width,
                "graph: keys (runs, layers, 16, n_kv_heads, width, 16), values (..., 16, width)");
        require(size(out, 0) == (last.selected ? r : n) && size(out, 1) == last.width,
                "graph: out (rows, width of the last result)");
        const Cache cache = Cache::of(keys.data(), values.data(), kv * width * 16, layers);
        const Batch batch{n, tokens.data(), rows, r, selected.data(), cache};
        const Unlocked unlocked;
        const auto start = Clock::now();
        graph_.run(batch, out.data());
        huge_pages().after_run(seconds_since(start));
    }

  private:
    const Step& step(Value x) const {
        require(x >= 0 && x < static_cast<Value>(graph_.steps().size()),
                "graph: an earlier result");
        return at(graph_.steps(), x);
    }
    void bound_positions(int64_t n) { n_positions_ = std::min(n, n_positions_.value_or(n)); }

    Graph graph_;
    int64_t n_vocab_ = 0;
    Maybe<int64_t> n_positions_;  // none: any position
    Heads heads_{};
};

}  // namespace

void bind_graph(nb::module_& m) {
    using G = CheckedGraph;
    nb::class_<G>(m, "Graph")
        .def(nb::init<>())
        .def("embed", &G::embed, "w"_a, "positions"_a.none(), nb::keep_alive<1, 3>())
        .def("layer_norm", &G::layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a)
        .def("rms_norm", &G::rms_norm, "x"_a, "weight"_a, "eps"_a)
        .def("linear", &G::linear, "w"_a, "x"_a, "bias"_a.none(), "activation"_a,
             "residual"_a.none())
        .def("gated", &G::gated, "gate"_a, "up"_a, "activation"_a)
        .def("concat", &G::concat, "queries"_a, "keys"_a, "values"_a)
        .def("rotate", &G::rotate, "qkv"_a, "n_heads"_a, "n_kv_heads"_a, "table"_a,
             nb::keep_alive<1, 5>())
        .def("attention", &G::attention, "qkv"_a, "n_heads"_a, "n_kv_heads"_a, "bf16"_a)
        .def("select", &G::select, "x"_a)
        .def("text", &G::text)
        .def("run", &G::run, "tokens"_a, "positions"_a, "row_starts"_a, "block_tables"_a,
             "selected"_a, "keys"_a, "values"_a, "out"_a);
}

}  // namespace starcoder
