// The functions of the core by the names they have on a tape, each with the arguments that its
// binding in csrc/python takes.
#include <map>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "kernels.h"
#include "probe/peaks.h"
#include "replay.h"
#include "sys/schedule.h"
#include "sys/scratch.h"
#include "types/decode.h"
#include "types/encode.h"

using namespace starcoder;

namespace replay {
namespace {

// ---- values and objects ----

Value whole(int64_t n) { return {.kind = Kind::Int, .number = n}; }
Value real(double x) { return {.kind = Kind::Float, .real = x}; }

struct Object {
    std::unique_ptr<Matrix> matrix;
    std::unique_ptr<Graph> graph;
    std::unique_ptr<Memory> memory;
};

std::vector<Object> objects;  // in the order in which they were made

Object& object(const Value& value) { return objects.at(static_cast<size_t>(value.number)); }
const Matrix& matrix(const Value& value) { return *object(value).matrix; }
Graph& graph(const Value& value) { return *object(value).graph; }
int integer(const Value& value) { return static_cast<int>(value.number); }
Type type(const Value& value) { return static_cast<Type>(value.number); }

Value keep(Object made) {
    objects.push_back(std::move(made));
    return {.kind = Kind::Object, .number = static_cast<int64_t>(objects.size()) - 1};
}

// ---- types ----

Value run_dequantize(const Args& a) {
    dequantize(type(a[0]), a[1].data, a[2].shape[0], a[2].shape[1], a[2].as<float>());
    return {};
}

Value run_quantize(const Args& a) {
    quantize(type(a[0]), a[1].floats(), a[1].shape[0], a[1].shape[1], a[2].number, a[3].data);
    return {};
}

Value run_requantize(const Args& a) {
    requantize(type(a[0]), a[1].data, type(a[4]), a[2].number, a[3].number, a[5].number, a[6].data);
    return {};
}

Value run_first_non_finite(const Args& a) {
    const int64_t blocks = a[1].shape[0] / block_bytes(type(a[0]));
    return whole(first_non_finite(type(a[0]), a[1].data, blocks * block_len(type(a[0]))));
}

// ---- operations ----

Value run_linear(const Args& a) {  // w, x, bias, activation, residual, out
    const Matrix& w = matrix(a[0]);
    const int64_t n = a[1].shape[0];
    const Input input{a[1].floats(), {}, nullptr};
    const Output output{a[5].as<float>(), nullptr, nullptr};
    Buffer shared;
    uint8_t* memory = shared.of(linear_scratch(w, n));
    Call call;
    linear(call.schedule(), w, input, n, a[2].floats(), Activation(a[3].number), a[4].floats(),
           output, memory);
    call.run();
    return {};
}

Value run_rms_norm(const Args& a) {  // x, weight, eps, out
    const Norm weights{a[1].floats(), nullptr, static_cast<float>(a[2].real)};
    Call call;
    norm(call.schedule(), a[0].floats(), weights, a[0].shape[0], a[0].shape[1], a[3].as<float>());
    call.run();
    return {};
}

Value run_gated(const Args& a) {  // gate, up, activation, out
    Call call;
    gated(call.schedule(), a[0].floats(), a[1].floats(), a[0].shape[0], a[0].shape[1],
          Activation(a[2].number), a[3].as<float>());
    call.run();
    return {};
}

Value run_rotate(const Args& a) {  // qkv, n_heads, n_kv_heads, positions, table, out
    const int64_t h = a[1].number, kv = a[2].number;
    const Heads heads{h, kv, a[0].shape[1] / (h + 2 * kv), false};
    Call call;
    rotate(call.schedule(), a[0].floats(), a[0].shape[0], heads, a[3].as<int32_t>(), a[4].floats(),
           a[5].as<float>());
    call.run();
    return {};
}

Value run_embed(const Args& a) {  // w, ids, out
    Call call;
    embed(call.schedule(), matrix(a[0]), a[1].as<int32_t>(), a[1].shape[0], nullptr, nullptr,
          a[2].as<float>());
    call.run();
    return {};
}

Value run_layer_norm(const Args& a) {  // x, weight, bias, eps, out
    const Norm weights{a[1].floats(), a[2].floats(), static_cast<float>(a[3].real)};
    Call call;
    norm(call.schedule(), a[0].floats(), weights, a[0].shape[0], a[0].shape[1], a[4].as<float>());
    call.run();
    return {};
}

Rows rows(const Value& positions, const Value& row_starts, const Value& block_tables) {
    return {positions.as<int32_t>(), row_starts.as<int32_t>(), block_tables.as<int32_t>(),
            block_tables.shape[0], block_tables.shape[1]};
}

// One layer: qkv, n_heads, positions, row_starts, block_tables, keys, values, bf16
struct Layer {
    Heads heads;
    Rows batch;
    Cache cache;
    explicit Layer(const Args& a)
        : heads{a[1].number, a[5].shape[1], a[0].shape[1] / (a[1].number + 2 * a[5].shape[1]),
                a[7].number != 0},
          batch(rows(a[2], a[3], a[4])),
          cache(Cache::of(a[5].as<uint16_t>(), a[6].as<uint16_t>(),
                          a[5].shape[1] * a[5].shape[2] * 16, 1)) {}
};

Value run_store_kv(const Args& a) {
    const Layer layer(a);
    Call call;
    store_kv(call.schedule(), a[0].floats(), a[0].shape[0], layer.heads, layer.batch, layer.cache);
    call.run();
    return {};
}

Value run_attention(const Args& a) {  // as a layer, out
    const Layer layer(a);
    const int64_t n = a[0].shape[0];
    Call call;
    Buffer shared;
    uint8_t* memory = shared.of(attention_scratch(n, layer.heads, layer.batch, call.n_threads()));
    attention(call.schedule(), a[0].floats(), n, layer.heads, layer.batch, layer.cache,
              a[8].as<float>(), memory);
    call.run();
    return {};
}

// ---- a model as a graph: the graph, then what its methods take ----

Value run_graph_embed(const Args& a) {
    return whole(graph(a[0]).embed(matrix(a[1]), a[2].floats()));
}

Value run_graph_layer_norm(const Args& a) {  // x, weight, bias, eps
    const auto eps = static_cast<float>(a[4].real);
    return whole(graph(a[0]).layer_norm(integer(a[1]), a[2].copy(), a[3].copy(), eps));
}

Value run_graph_linear(const Args& a) {  // w, x, bias, activation, residual
    const int residual = a[5].kind == Kind::None ? kNone : integer(a[5]);
    return whole(graph(a[0]).linear(matrix(a[1]), integer(a[2]), a[3].copy(),
                                    Activation(a[4].number), residual));
}

// qkv, n_heads, n_kv_heads
Heads heads_of(const Graph& of, const Args& a, bool bf16) {
    const int64_t width = at(of.steps(), integer(a[1])).width, h = a[2].number, kv = a[3].number;
    return {h, kv, width / (h + 2 * kv), bf16};
}

Value run_graph_rms_norm(const Args& a) {  // x, weight, eps
    const auto eps = static_cast<float>(a[3].real);
    return whole(graph(a[0]).rms_norm(integer(a[1]), a[2].copy(), eps));
}

Value run_graph_gated(const Args& a) {  // gate, up, activation
    return whole(graph(a[0]).gated(integer(a[1]), integer(a[2]), Activation(a[3].number)));
}

Value run_graph_concat(const Args& a) {  // queries, keys, values
    return whole(graph(a[0]).concat(integer(a[1]), integer(a[2]), integer(a[3])));
}

Value run_graph_rotate(const Args& a) {  // qkv, n_heads, n_kv_heads, table
    Graph& to = graph(a[0]);
    return whole(to.rotate(integer(a[1]), heads_of(to, a, false), a[4].floats()));
}

Value run_graph_attention(const Args& a) {  // qkv, n_heads, n_kv_heads, bf16
    Graph& to = graph(a[0]);
    return whole(to.attention(integer(a[1]), heads_of(to, a, a[4].number != 0)));
}

Value run_graph_select(const Args& a) { return whole(graph(a[0]).select(integer(a[1]))); }

// tokens, positions, row_starts, block_tables, selected, keys, values, out
Value run_graph(const Args& a) {
    const Value &keys = a[6], &values = a[7];
    const int64_t block_len = keys.shape[3] * keys.shape[4] * 16;
    const Batch batch{
        a[1].shape[0],
        a[1].as<int32_t>(),
        rows(a[2], a[3], a[4]),
        a[5].shape[0],
        a[5].as<int32_t>(),
        Cache::of(keys.as<uint16_t>(), values.as<uint16_t>(), block_len, keys.shape[1])};
    graph(a[0]).run(batch, a[8].as<float>());
    return {};
}

// ---- objects, and the machine ----

Value make_matrix(const Args& a) {  // type, data, rows, columns
    return keep(
        {.matrix = std::make_unique<Matrix>(type(a[0]), a[1].data, a[2].number, a[3].number)});
}

Value make_graph(const Args&) { return keep({.graph = std::make_unique<Graph>()}); }

Value make_memory(const Args& a) {
    const auto seed = static_cast<uint64_t>(a[1].number);
    return keep({.memory = std::make_unique<Memory>(a[0].number, seed)});
}

Value run_read(const Args& a) {
    return whole(static_cast<int64_t>(object(a[0]).memory->read(integer(a[1])).bits));
}

Value run_peak(const Args& a) { return real(peak(Arithmetic(a[0].number), a[1].real).product); }

const std::map<std::string_view, Function> kFunctions = {
    {"dequantize", run_dequantize},
    {"quantize", run_quantize},
    {"requantize", run_requantize},
    {"first_non_finite", run_first_non_finite},
    {"testing.linear", run_linear},
    {"testing.embed", run_embed},
    {"testing.layer_norm", run_layer_norm},
    {"testing.rms_norm", run_rms_norm},
    {"testing.gated", run_gated},
    {"testing.rotate", run_rotate},
    {"testing.store_kv", run_store_kv},
    {"testing.attention", run_attention},
    {"Matrix", make_matrix},
    {"Graph", make_graph},
    {"Graph.embed", run_graph_embed},
    {"Graph.layer_norm", run_graph_layer_norm},
    {"Graph.rms_norm", run_graph_rms_norm},
    {"Graph.linear", run_graph_linear},
    {"Graph.gated", run_graph_gated},
    {"Graph.concat", run_graph_concat},
    {"Graph.rotate", run_graph_rotate},
    {"Graph.attention", run_graph_attention},
    {"Graph.select", run_graph_select},
    {"Graph.run", run_graph},
    {"Memory", make_memory},
    {"Memory.read", run_read},
    {"peak", run_peak},
};

}  // namespace

Function function_named(std::string_view name) {
    const auto found = kFunctions.find(name);
    return found == kFunctions.end() ? nullptr : found->second;
}

}  // namespace replay
