// Replays a tape: calls of the core that another machine recorded, with its answers. tape.py says
// what a tape is made of.
//
//   replay TAPE
//
// Prints the instruction set and the number of calls. Answers with other bits are told on stderr,
// and it ends with 1. STARCODER_ISA names an instruction set other than the best.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "kernels.h"
#include "probe/peaks.h"
#include "simd/isa.h"
#include "sys/schedule.h"
#include "sys/scratch.h"
#include "sys/threads.h"
#include "types/decode.h"
#include "types/encode.h"

using namespace starcoder;

namespace {

// ---- what stands on a tape ----

enum class Kind : int64_t { None, Int, Bool, Float, Object, Array, Answer, State };

struct Value {
    Kind kind = Kind::None;
    int64_t number = 0;
    double real = 0;
    int64_t dtype = 0;  // u8, i32, f32, u16
    std::vector<int64_t> shape;
    uint8_t* data = nullptr;    // what a call reads or fills
    std::string_view expected;  // what must be there afterwards; empty: nobody compares

    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data);
    }
    const float* floats() const { return as<const float>(); }
    std::vector<float> copy() const {
        return data ? std::vector<float>(floats(), floats() + shape[0]) : std::vector<float>();
    }
};

Value whole(int64_t n) {
    Value value;
    value.kind = Kind::Int, value.number = n;
    return value;
}

Value real(double x) {
    Value value;
    value.kind = Kind::Float, value.real = x;
    return value;
}

struct Object {
    std::unique_ptr<Matrix> matrix;
    std::unique_ptr<Graph> graph;
    std::unique_ptr<Memory> memory;
};

using Args = std::vector<Value>;
std::vector<Object> objects;

Object& object(const Value& value) { return objects.at(static_cast<size_t>(value.number)); }
const Matrix& matrix(const Value& value) { return *object(value).matrix; }
Graph& graph(const Value& value) { return *object(value).graph; }
int integer(const Value& value) { return static_cast<int>(value.number); }
Type type(const Value& value) { return static_cast<Type>(value.number); }

Value keep(Object made) {
    objects.push_back(std::move(made));
    Value value;
    value.kind = Kind::Object, value.number = static_cast<int64_t>(objects.size()) - 1;
    return value;
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
    Object made;
    made.matrix = std::make_unique<Matrix>(type(a[0]), a[1].data, a[2].number, a[3].number);
    return keep(std::move(made));
}

Value make_graph(const Args&) {
    Object made;
    made.graph = std::make_unique<Graph>();
    return keep(std::move(made));
}

Value make_memory(const Args& a) {
    Object made;
    made.memory = std::make_unique<Memory>(a[0].number, static_cast<uint64_t>(a[1].number));
    return keep(std::move(made));
}

Value run_read(const Args& a) {
    return whole(static_cast<int64_t>(object(a[0]).memory->read(integer(a[1])).bits));
}

Value run_peak(const Args& a) { return real(peak(Arithmetic(a[0].number), a[1].real).product); }

const std::map<std::string_view, Value (*)(const Args&)> kFunctions = {
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

// ---- replaying ----

size_t item_bytes(int64_t dtype) {
    constexpr size_t kBytes[] = {1, 4, 4, 2};
    return kBytes[dtype];
}

// Whether one number has the same bits. Which not-a-number it is, CPUs choose.
bool is_same(const uint8_t* found, const char* expected, int64_t dtype) {
    if (std::memcmp(found, expected, item_bytes(dtype)) == 0) return true;
    float a, b;
    if (dtype != 2) return false;
    std::memcpy(&a, found, 4), std::memcpy(&b, expected, 4);
    return std::isnan(a) && std::isnan(b);
}

class Player {
  public:
    explicit Player(std::vector<uint8_t> tape) : tape_(std::move(tape)) {}

    int n_calls = 0, n_different = 0;

    void play() {
        while (at_ < tape_.size()) {
            play_one();
            ++n_calls;
        }
    }

  private:
    void play_one() {
        name_ = text(), label_ = text();
        answers_.clear();
        Args args(static_cast<size_t>(number()));
        for (Value& arg : args) arg = value();
        const auto function = kFunctions.find(name_);
        if (function == kFunctions.end()) {
            std::fprintf(stderr, "replay: no function %.*s\n", length(name_), name_.data());
            std::exit(2);
        }
        const Value found = function->second(args), expected = value();
        const bool same = found.kind == expected.kind && found.number == expected.number &&
                          found.real == expected.real;
        if (!same) tell("another result");
        for (const Value& arg : args) compare(arg);
    }

    void compare(const Value& arg) {
        const size_t bytes = item_bytes(arg.dtype);
        for (size_t at = 0; at < arg.expected.size(); at += bytes) {
            const uint8_t* found = arg.data + at;
            const char* expected = arg.expected.data() + at;
            if (is_same(found, expected, arg.dtype)) continue;
            return tell("at " + std::to_string(at / bytes) + " found bits " + hex(found, bytes) +
                        ", expected " + hex(expected, bytes));
        }
    }

    static std::string hex(const void* number, size_t bytes) {
        uint32_t bits = 0;
        std::memcpy(&bits, number, bytes);
        char text[9];
        std::snprintf(text, sizeof(text), "%08x", bits);
        return text;
    }

    void tell(const std::string& what) {
        std::fprintf(stderr, "%.*s %.*s: %s\n", length(name_), name_.data(), length(label_),
                     label_.data(), what.c_str());
        ++n_different;
    }

    Value value() {
        Value value;
        value.kind = static_cast<Kind>(number());
        switch (value.kind) {
            case Kind::None: break;
            case Kind::Float: std::memcpy(&value.real, take(8), 8); break;
            case Kind::Array: {
                value.data = const_cast<uint8_t*>(array(value));
                break;
            }
            case Kind::Answer: {
                const uint8_t* bytes = array(value);
                value.expected = {reinterpret_cast<const char*>(bytes), n_bytes(value)};
                value.data = answers_.emplace_back(n_bytes(value), uint8_t{0xff}).data();
                break;
            }
            case Kind::State: {
                std::vector<uint8_t>& state = states_[number()];
                const uint8_t* bytes = array(value);
                if (bytes) value.expected = {reinterpret_cast<const char*>(bytes), n_bytes(value)};
                state.resize(n_bytes(value));
                value.data = state.data();
                break;
            }
            default: value.number = number();
        }
        return value;
    }

    static int length(std::string_view text) { return static_cast<int>(text.size()); }
    static size_t n_bytes(const Value& value) {
        size_t n = item_bytes(value.dtype);
        for (const int64_t axis : value.shape) n *= static_cast<size_t>(axis);
        return n;
    }

    // Fills in dtype and shape; null if no bytes are there.
    const uint8_t* array(Value& value) {
        value.dtype = number();
        value.shape.resize(static_cast<size_t>(number()));
        for (int64_t& axis : value.shape) axis = number();
        const std::string_view bytes = text();
        return bytes.empty() ? nullptr : reinterpret_cast<const uint8_t*>(bytes.data());
    }
    std::string_view text() {
        const auto n = static_cast<size_t>(number());
        return {reinterpret_cast<const char*>(take((n + 7) / 8 * 8)), n};
    }
    int64_t number() {
        int64_t n;
        std::memcpy(&n, take(8), 8);
        return n;
    }
    const uint8_t* take(size_t n) {
        if (tape_.size() - at_ < n) {
            std::fprintf(stderr, "replay: the tape ends in the middle of a call\n");
            std::exit(2);
        }
        at_ += n;
        return tape_.data() + at_ - n;
    }

    std::vector<uint8_t> tape_;
    size_t at_ = 0;
    std::string_view name_, label_;
    std::vector<std::vector<uint8_t>> answers_;
    std::map<int64_t, std::vector<uint8_t>> states_;
};

std::vector<uint8_t> read_file(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file) std::exit(2);
    std::fseek(file, 0, SEEK_END);
    std::vector<uint8_t> data(static_cast<size_t>(std::ftell(file)));
    std::rewind(file);
    if (std::fread(data.data(), 1, data.size(), file) != data.size()) std::exit(2);
    std::fclose(file);
    return data;
}

}  // namespace

int main(int argc, char** argv) {
    const char* wanted = std::getenv("STARCODER_ISA");
    if (argc != 2 || (wanted && !use_isa(wanted))) return 2;
    set_n_threads(2);
    Player player(read_file(argv[1]));
    player.play();
    std::printf("%s %d\n", isa().name, player.n_calls);
    return player.n_different ? 1 : 0;
}
