// Operations one by one, for tests: a model runs them as a graph.
#include <nanobind/stl/optional.h>

#include "kernels.h"
#include "python/checks.h"
#include "python/interpreter.h"
#include "sys/schedule.h"
#include "sys/scratch.h"
#include "sys/weight_memory.h"

namespace starcoder {

namespace {

using namespace nb::literals;

void py_linear(const Matrix& w, In<float, 2> x, Maybe<In<float, 1>> bias, int activation,
               Maybe<In<float, 2>> residual, Out<float, 2> out) {
    const int64_t n = size(x, 0);
    require(size(x, 1) == w.n_cols(), "linear: x (n, k) for weights (m, k)");
    require(size(out, 0) == n && size(out, 1) == w.n_rows(), "linear: out (n, m)");
    require(!bias || size(*bias, 0) == w.n_rows(), "linear: bias (m)");
    require(!residual || (size(*residual, 0) == n && size(*residual, 1) == w.n_rows()),
            "linear: residual (n, m)");
    const Activation function = checked_activation(activation);
    const Unlocked unlocked;
    Buffer shared;
    const Input input{x.data(), {}, nullptr};
    const Output output{out.data(), nullptr, nullptr};
    uint8_t* memory = shared.of(linear_scratch(w, n));
    Call call;
    linear(call.schedule(), w, input, n, bias ? bias->data() : nullptr, function,
           residual ? residual->data() : nullptr, output, memory);
    call.run();
}

void py_embed(const Matrix& w, In<int32_t, 1> ids, Out<float, 2> out) {
    require(size(out, 0) == size(ids, 0) && size(out, 1) == w.n_cols(), "embed: out (n, k)");
    for (size_t i = 0; i < ids.size(); ++i)
        require(ids.data()[i] >= 0 && ids.data()[i] < w.n_rows(), "embed: ids from 0 to m - 1");
    const Unlocked unlocked;
    Call call;
    embed(call.schedule(), w, ids.data(), size(ids, 0), nullptr, nullptr, out.data());
    call.run();
}

void py_layer_norm(In<float, 2> x, In<float, 1> weight, In<float, 1> bias, float eps,
                   Out<float, 2> out) {
    const int64_t n = size(x, 0), k = size(x, 1);
    require(size(weight, 0) == k && size(bias, 0) == k, "layer_norm: weight and bias (k)");
    require(size(out, 0) == n && size(out, 1) == k, "layer_norm: out (n, k)");
    const Unlocked unlocked;
    const Norm norm{weight.data(), bias.data(), eps};
    Call call;
    starcoder::norm(call.schedule(), x.data(), norm, n, k, out.data());
    call.run();
}

void py_rms_norm(In<float, 2> x, In<float, 1> weight, float eps, Out<float, 2> out) {
    const int64_t n = size(x, 0), k = size(x, 1);
    require(size(weight, 0) == k, "rms_norm: weight (k)");
    require(size(out, 0) == n && size(out, 1) == k, "rms_norm: out (n, k)");
    const Unlocked unlocked;
    Call call;
    norm(call.schedule(), x.data(), {weight.data(), nullptr, eps}, n, k, out.data());
    call.run();
}

void py_gated(In<float, 2> gate, In<float, 2> up, int activation, Out<float, 2> out) {
    const int64_t n = size(gate, 0), m = size(gate, 1);
    require(size(up, 0) == n && size(up, 1) == m, "gated: gate and up (n, m)");
    require(size(out, 0) == n && size(out, 1) == m, "gated: out (n, m)");
    const Activation function = checked_activation(activation);
    const Unlocked unlocked;
    Call call;
    gated(call.schedule(), gate.data(), up.data(), n, m, function, out.data());
    call.run();
}

void py_rotate(In<float, 2> qkv, int n_heads, int n_kv_heads, In<int32_t, 1> positions,
               In<float, 3> table, Out<float, 2> out) {
    const int64_t n = size(qkv, 0);
    const Heads heads = checked_heads(size(qkv, 1), n_heads, n_kv_heads, false);
    require(heads.head_dim % 2 == 0 && size(table, 1) == 2 && size(table, 2) == heads.head_dim / 2,
            "rotate: table (n_positions, 2, head_dim / 2)");
    require(size(positions, 0) == n, "rotate: positions (n)");
    for (int64_t i = 0; i < n; ++i)
        require(positions.data()[i] >= 0 && positions.data()[i] < size(table, 0),
                "rotate: positions below n_positions");
    require(size(out, 0) == n && size(out, 1) == size(qkv, 1), "rotate: out as qkv");
    const Unlocked unlocked;
    Call call;
    rotate(call.schedule(), qkv.data(), n, heads, positions.data(), table.data(), out.data());
    call.run();
}

struct Layer {
    Heads heads;
    Rows rows;
    Cache cache;

    Layer(In<float, 2> qkv, int n_heads, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
          In<int32_t, 2> block_tables, Out<uint16_t, 4> keys, Out<uint16_t, 4> values, bool bf16)
        : heads(checked_heads(size(qkv, 1), n_heads, size(keys, 1), bf16)),
          rows(checked_rows(size(qkv, 0), size(keys, 0), positions, row_starts, block_tables)),
          cache(Cache::of(keys.data(), values.data(), size(keys, 1) * size(keys, 2) * 16, 1)) {
        const int64_t width = size(keys, 2);
        require(heads.width() == width && size(keys, 3) == 16 && size(values, 2) == 16 &&
                    size(values, 3) == width && size(values, 0) == size(keys, 0) &&
                    size(values, 1) == heads.n_kv_heads,
                "attention: keys (blocks, n_kv_heads, width, 16), values (..., 16, width)");
    }
};

void py_store_kv(In<float, 2> qkv, int n_heads, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
                 In<int32_t, 2> block_tables, Out<uint16_t, 4> keys, Out<uint16_t, 4> values,
                 bool bf16) {
    const Layer layer(qkv, n_heads, positions, row_starts, block_tables, keys, values, bf16);
    const Unlocked unlocked;
    Call call;
    store_kv(call.schedule(), qkv.data(), size(qkv, 0), layer.heads, layer.rows, layer.cache);
    call.run();
}

void py_attention(In<float, 2> qkv, int n_heads, In<int32_t, 1> positions,
                  In<int32_t, 1> row_starts, In<int32_t, 2> block_tables, Out<uint16_t, 4> keys,
                  Out<uint16_t, 4> values, bool bf16, Out<float, 2> out) {
    const Layer layer(qkv, n_heads, positions, row_starts, block_tables, keys, values, bf16);
    const int64_t n = size(qkv, 0);
    require(size(out, 0) == n && size(out, 1) == layer.heads.n_heads * layer.heads.head_dim,
            "attention: out (n, n_heads head_dim)");
    if (n == 0) return;
    const Unlocked unlocked;
    Buffer shared;
    Call call;
    uint8_t* memory = shared.of(attention_scratch(n, layer.heads, layer.rows, call.n_threads()));
    attention(call.schedule(), qkv.data(), n, layer.heads, layer.rows, layer.cache, out.data(),
              memory);
    call.run();
}

}  // namespace

void bind_testing(nb::module_& m) {
    m.def("linear", &py_linear, "w"_a, "x"_a, "bias"_a.none(), "activation"_a, "residual"_a.none(),
          "out"_a);
    m.def("embed", &py_embed, "w"_a, "ids"_a, "out"_a);
    m.def("layer_norm", &py_layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a, "out"_a);
    m.def("rms_norm", &py_rms_norm, "x"_a, "weight"_a, "eps"_a, "out"_a);
    m.def("gated", &py_gated, "gate"_a, "up"_a, "activation"_a, "out"_a);
    m.def("rotate", &py_rotate, "qkv"_a, "n_heads"_a, "n_kv_heads"_a, "positions"_a, "table"_a,
          "out"_a);
    m.def("store_kv", &py_store_kv, "qkv"_a, "n_heads"_a, "positions"_a, "row_starts"_a,
          "block_tables"_a, "keys"_a, "values"_a, "bf16"_a);
    m.def("attention", &py_attention, "qkv"_a, "n_heads"_a, "positions"_a, "row_starts"_a,
          "block_tables"_a, "keys"_a, "values"_a, "bf16"_a, "out"_a);
    m.def("begin_small", [](bool always) { huge_pages().begin_small(always); }, "always"_a);
}

}  // namespace starcoder
