// Python's door to kernels.h: checks, releases the interpreter lock, calls. No arithmetic.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "python/interpreter.h"
#include "simd/isa.h"
#include "kernels.h"
#include "sys/mapped_files.h"
#include "types/panels.h"
#include "sys/schedule.h"
#include "sys/scratch.h"
#include "sys/threads.h"
#include "sys/weight_memory.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace starcoder;

namespace {

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Maybe = std::optional<T>;

void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

template <class A>
int64_t size(const A& array, int axis) {
    return static_cast<int64_t>(array.shape(static_cast<size_t>(axis)));
}

// The types a file may have; other numbers never reach the kernels.
Type checked_type(int number) {
    const auto type = static_cast<Type>(number);
    switch (type) {
        case Type::F32:
        case Type::F16:
        case Type::BF16:
        case Type::Q4_0:
        case Type::Q4_1:
        case Type::Q5_0:
        case Type::Q5_1:
        case Type::Q8_0:
        case Type::Q2_K:
        case Type::Q3_K:
        case Type::Q4_K:
        case Type::Q5_K:
        case Type::Q6_K:
        case Type::IQ4_NL: return type;
    }
    throw std::invalid_argument("unknown tensor type " + std::to_string(number));
}

void require_bytes(Type type, int64_t n_rows, int64_t n_cols, size_t nbytes) {
    require(n_rows > 0 && n_cols > 0 && n_cols % block_len(type) == 0, "rows of whole blocks");
    const auto expected = static_cast<size_t>(n_rows * (n_cols / block_len(type))) *
                          static_cast<size_t>(block_bytes(type));
    require(nbytes == expected, "as many bytes as type and shape ask for");
}

void require_aligned(Type type, const void* data) {
    const bool halves = type == Type::F16 || type == Type::BF16;
    require(!halves || reinterpret_cast<uintptr_t>(data) % 2 == 0, "halves at an even address");
}

void make_matrix(Matrix* self, int type, In<uint8_t, 1> data, int64_t n_rows, int64_t n_cols) {
    const Type t = checked_type(type);
    require_bytes(t, n_rows, n_cols, data.size());
    const Unlocked unlocked;
    new (self) Matrix(t, data.data(), n_rows, n_cols);
}

int64_t py_packed_bytes(int type, int64_t n_rows, int64_t n_cols) {
    const Type t = checked_type(type);
    require(n_rows > 0 && n_cols > 0 && n_cols % block_len(t) == 0, "rows of whole blocks");
    return packed_bytes(t, n_rows, n_cols);
}

void py_dequantize(int type, In<uint8_t, 1> data, Out<float, 2> out) {
    const Type t = checked_type(type);
    require_bytes(t, size(out, 0), size(out, 1), data.size());
    const Unlocked unlocked;
    dequantize(t, data.data(), size(out, 0), size(out, 1), out.data());
}

void py_requantize(int from, In<uint8_t, 1> data, int64_t n_rows, int64_t n_cols, int to,
                   bool fused, Out<uint8_t, 1> out) {
    const Type source = checked_type(from), target = checked_type(to);
    require_bytes(source, n_rows, n_cols, data.size());
    require_bytes(target, n_rows, n_cols, out.size());
    require_aligned(target, out.data());
    const Unlocked unlocked;
    requantize(source, data.data(), target, n_rows, n_cols, fused, out.data());
}

void py_quantize(int type, In<float, 2> x, bool fused, Out<uint8_t, 1> out) {
    const Type t = checked_type(type);
    require_bytes(t, size(x, 0), size(x, 1), out.size());
    require_aligned(t, out.data());
    const Unlocked unlocked;
    quantize(t, x.data(), size(x, 0), size(x, 1), fused, out.data());
}

int64_t py_first_non_finite(int type, In<uint8_t, 1> data) {
    const Type t = checked_type(type);
    require(data.size() % static_cast<size_t>(block_bytes(t)) == 0,
            "as many bytes as whole blocks take");
    const auto n = static_cast<int64_t>(data.size()) / block_bytes(t) * block_len(t);
    const Unlocked unlocked;
    return first_non_finite(t, data.data(), n);
}

void py_linear(const Matrix& w, In<float, 2> x, Maybe<In<float, 1>> bias, int activation,
               Maybe<In<float, 2>> residual, Out<float, 2> out) {
    const int64_t n = size(x, 0);
    require(size(x, 1) == w.n_cols(), "linear: x (n, k) for weights (m, k)");
    require(size(out, 0) == n && size(out, 1) == w.n_rows(), "linear: out (n, m)");
    require(!bias || size(*bias, 0) == w.n_rows(), "linear: bias (m)");
    require(!residual || (size(*residual, 0) == n && size(*residual, 1) == w.n_rows()),
            "linear: residual (n, m)");
    require(activation >= 0 && activation <= 2, "linear: activation 0, 1 or 2");
    const Unlocked unlocked;
    Buffer shared;
    const Input input{x.data(), {}, nullptr};
    const Output output{out.data(), nullptr, nullptr};
    uint8_t* memory = shared.of(linear_scratch(w, input, n));
    Call call;
    linear(call.schedule(), w, input, n, bias ? bias->data() : nullptr,
           static_cast<Activation>(activation), residual ? residual->data() : nullptr, output,
           memory);
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
    layer_norm(call.schedule(), x.data(), norm, n, k, out.data());
    call.run();
}

// Where the rows of a batch stand, and the cache, checked against each other.
Rows checked_rows(int64_t n, int64_t n_blocks, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
                  In<int32_t, 2> block_tables) {
    const int64_t sequences = size(block_tables, 0), table_len = size(block_tables, 1);
    require(size(positions, 0) == n && size(row_starts, 0) == sequences + 1,
            "attention: positions (n), row_starts (sequences + 1)");
    require(row_starts.data()[0] == 0 && row_starts.data()[sequences] == n,
            "attention: row_starts from 0 to n");
    for (int64_t s = 0; s < sequences; ++s)
        require(row_starts.data()[s] <= row_starts.data()[s + 1],
                "attention: row_starts must not fall");
    for (int64_t i = 0; i < n; ++i)
        require(positions.data()[i] >= 0 && positions.data()[i] < table_len * 16,
                "attention: positions inside the block table");
    for (int64_t s = 0; s < sequences; ++s)
        for (int64_t i = row_starts.data()[s] + 1; i < row_starts.data()[s + 1]; ++i)
            require(positions.data()[i - 1] <= positions.data()[i],
                    "attention: positions of a sequence must not fall");
    for (size_t i = 0; i < block_tables.size(); ++i)
        require(block_tables.data()[i] >= 0 && block_tables.data()[i] < n_blocks,
                "attention: block tables of blocks in the cache");
    return {positions.data(), row_starts.data(), block_tables.data(), sequences, table_len};
}

Heads checked_heads(int64_t qkv_width, int64_t n_heads, int64_t n_kv_heads, bool bf16) {
    require(n_heads > 0 && n_kv_heads > 0 && n_heads % n_kv_heads == 0,
            "attention: n_kv_heads divides n_heads");
    const Heads heads{n_heads, n_kv_heads, qkv_width / (n_heads + 2 * n_kv_heads), bf16};
    require(heads.head_dim > 0 && heads.row() == qkv_width,
            "attention: qkv (n, (n_heads + 2 n_kv_heads) head_dim)");
    return heads;
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

// ---- a model as a graph ----

// A graph, and what its runs are checked against.
class CheckedGraph {
  public:
    int embed(const Matrix& w, In<float, 2> positions) {
        require(size(positions, 1) == w.n_cols(), "embed: positions (n_positions, k)");
        n_vocab_ = w.n_rows(), n_positions_ = size(positions, 0);
        return graph_.embed(w, positions.data());
    }
    int layer_norm(int x, In<float, 1> weight, In<float, 1> bias, float eps) {
        const int64_t k = graph_.width(checked(x));
        require(size(weight, 0) == k && size(bias, 0) == k, "layer_norm: weight and bias (k)");
        return graph_.layer_norm(x, copy(weight), copy(bias), eps);
    }
    int linear(const Matrix& w, int x, Maybe<In<float, 1>> bias, int activation,
               Maybe<int> residual) {
        const bool is_norm = x >= 0 && x < graph_.n_values() && graph_.is_norm(x);
        require(graph_.width(is_norm ? x : checked(x)) == w.n_cols(), "linear: x (n, k)");
        require(!bias || size(*bias, 0) == w.n_rows(), "linear: bias (m)");
        require(!residual || graph_.width(checked(*residual)) == w.n_rows(),
                "linear: residual (n, m)");
        require(!residual || graph_.is_selected(*residual) == graph_.is_selected(x),
                "linear: x and residual of the same rows");
        require(activation >= 0 && activation <= 2, "linear: activation 0, 1 or 2");
        return graph_.linear(w, x, bias ? copy(*bias) : std::vector<float>(),
                             static_cast<Activation>(activation), residual.value_or(Graph::kNone));
    }
    int attention(int qkv, int n_heads, int n_kv_heads, bool bf16) {
        const Heads heads = checked_heads(graph_.width(checked(qkv)), n_heads, n_kv_heads, bf16);
        require(!graph_.is_selected(qkv), "attention: qkv of all rows");
        require(n_layers_ == 0 ||
                    (heads.width() == heads_.width() && heads.n_kv_heads == heads_.n_kv_heads),
                "attention: the same keys and values in every layer");
        heads_ = heads;
        return graph_.attention(qkv, n_layers_++, heads);
    }
    int select(int x) {
        require(!graph_.is_selected(checked(x)), "select: x of all rows");
        return graph_.select(x);
    }

    void run(In<int32_t, 1> tokens, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
             In<int32_t, 2> block_tables, In<int32_t, 1> selected, Out<uint16_t, 6> keys,
             Out<uint16_t, 6> values, Out<float, 2> out) {
        const int64_t n = size(tokens, 0), r = size(selected, 0), runs = size(keys, 0);
        const int last = graph_.n_values() - 1;
        require(last >= 0 && !graph_.is_norm(last), "graph: ends with a result");
        require(n > 0, "graph: tokens (n), one or more");
        for (int64_t i = 0; i < n; ++i)
            require(tokens.data()[i] >= 0 && tokens.data()[i] < n_vocab_,
                    "graph: tokens from 0 to n_vocab - 1");
        for (int64_t i = 0; i < r; ++i)
            require(selected.data()[i] >= 0 && selected.data()[i] < n, "graph: rows of the batch");
        const Rows rows = checked_rows(n, runs * Cache::kRun, positions, row_starts, block_tables);
        for (int64_t i = 0; i < n; ++i)
            require(positions.data()[i] < n_positions_, "graph: positions below n_positions");
        const int64_t kv = heads_.n_kv_heads, width = heads_.width();
        const auto heads = [&](const auto& blocks) {
            return size(blocks, 0) == runs && size(blocks, 1) == n_layers_ &&
                   size(blocks, 2) == Cache::kRun && size(blocks, 3) == kv;
        };
        require(heads(keys) && size(keys, 4) == width && size(keys, 5) == 16 && heads(values) &&
                    size(values, 4) == 16 && size(values, 5) == width,
                "graph: keys (runs, layers, 16, n_kv_heads, width, 16), values (..., 16, width)");
        require(size(out, 0) == (graph_.is_selected(last) ? r : n) &&
                    size(out, 1) == graph_.width(last),
                "graph: out (rows, width of the last result)");
        const Inputs inputs{
            n, tokens.data(),   rows,
            r, selected.data(), Cache::of(keys.data(), values.data(), kv * width * 16, n_layers_)};
        const Unlocked unlocked;
        graph_.run(inputs, out.data());
    }

  private:
    int checked(int x) const {
        require(x >= 0 && x < graph_.n_values() && !graph_.is_norm(x), "graph: an earlier result");
        return x;
    }
    static std::vector<float> copy(const In<float, 1>& x) {
        return {x.data(), x.data() + x.size()};
    }

    Graph graph_;
    int64_t n_vocab_ = 0, n_positions_ = 0;
    int n_layers_ = 0;
    Heads heads_{};
};

// ---- the machine ----

std::pair<double, double> py_peak(int kind, double seconds) {
    require(kind >= 0 && kind <= 2, "peak: kind 0, 1 or 2");
    const Unlocked unlocked;
    const Peak found = peak(static_cast<Arithmetic>(kind), seconds);
    return {found.per_second, found.product};
}

int py_watch_mapping(In<uint8_t, 1> bytes) { return watch_mapping(bytes.data(), bytes.size()); }

void make_memory(Memory* memory, int64_t nbytes, uint64_t bits) {
    require(nbytes >= 64, "memory: a line or more");
    const Unlocked unlocked;
    new (memory) Memory(nbytes, bits);
}

std::pair<double, uint64_t> py_read(const Memory& memory, int passes) {
    require(passes >= 1, "read: once or more");
    const Unlocked unlocked;
    const Reading found = memory.read(passes);
    return {found.per_second, found.bits};
}

std::vector<std::string> isa_names() {
    std::vector<std::string> names;
    for (const Isa* isa : available_isas()) names.emplace_back(isa->name);
    return names;
}

}  // namespace

NB_MODULE(_core, m) {
    nb::set_leak_warnings(false);  // a model may outlive the interpreter's last collection

    nb::class_<Matrix>(m, "Matrix")
        .def("__init__", &make_matrix, "type"_a, "data"_a, "n_rows"_a, "n_cols"_a)
        .def_prop_ro("n_rows", &Matrix::n_rows)
        .def_prop_ro("n_cols", &Matrix::n_cols)
        .def_prop_ro("nbytes", &Matrix::nbytes)
        .def_prop_ro("type", [](const Matrix& w) { return static_cast<int>(w.type()); });

    nb::class_<Memory>(m, "Memory")
        .def("__init__", &make_memory, "nbytes"_a, "bits"_a)
        .def("read", &py_read, "passes"_a);

    nb::class_<CheckedGraph>(m, "Graph")
        .def(nb::init<>())
        .def("embed", &CheckedGraph::embed, "w"_a, "positions"_a, nb::keep_alive<1, 3>())
        .def("layer_norm", &CheckedGraph::layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a)
        .def("linear", &CheckedGraph::linear, "w"_a, "x"_a, "bias"_a.none(), "activation"_a,
             "residual"_a.none())
        .def("attention", &CheckedGraph::attention, "qkv"_a, "n_heads"_a, "n_kv_heads"_a, "bf16"_a)
        .def("select", &CheckedGraph::select, "x"_a)
        .def("run", &CheckedGraph::run, "tokens"_a, "positions"_a, "row_starts"_a, "block_tables"_a,
             "selected"_a, "keys"_a, "values"_a, "out"_a);

    m.def("packed_bytes", &py_packed_bytes, "type"_a, "n_rows"_a, "n_cols"_a);
    m.def("dequantize", &py_dequantize, "type"_a, "data"_a, "out"_a);
    m.def("requantize", &py_requantize, "source"_a, "data"_a, "n_rows"_a, "n_cols"_a, "type"_a,
          "fused"_a, "out"_a);
    m.def("quantize", &py_quantize, "type"_a, "x"_a, "fused"_a, "out"_a);
    m.def("first_non_finite", &py_first_non_finite, "type"_a, "data"_a);
    m.def("linear", &py_linear, "w"_a, "x"_a, "bias"_a.none(), "activation"_a, "residual"_a.none(),
          "out"_a);
    m.def("embed", &py_embed, "w"_a, "ids"_a, "out"_a);
    m.def("layer_norm", &py_layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a, "out"_a);
    m.def("store_kv", &py_store_kv, "qkv"_a, "n_heads"_a, "positions"_a, "row_starts"_a,
          "block_tables"_a, "keys"_a, "values"_a, "bf16"_a);
    m.def("attention", &py_attention, "qkv"_a, "n_heads"_a, "positions"_a, "row_starts"_a,
          "block_tables"_a, "keys"_a, "values"_a, "bf16"_a, "out"_a);

    m.def("gather_weights", &gather_weights, "seconds"_a, nb::call_guard<Unlocked>());
    m.def("scatter_weights", &scatter_weights, "always"_a);

    m.def("watch_mapping", &py_watch_mapping, "bytes"_a);
    m.def("lost_bytes", &lost_bytes, "mapping"_a);
    m.def("unwatch_mapping", &unwatch_mapping, "mapping"_a);

    m.def("peak", &py_peak, "kind"_a, "seconds"_a);

    m.def("isa", [] { return std::string(isa().name); });
    m.def("available_isas", &isa_names);
    m.def("use_isa", [](const std::string& name) { return use_isa(name); }, "name"_a);
    m.def("n_threads", &n_threads);
    m.def("set_n_threads", &set_n_threads, "n"_a);
    m.def("start_threads", &start_threads, nb::call_guard<Unlocked>());

    const nb::object main_thread = nb::module_::import_("threading").attr("main_thread")();
    set_main_thread(nb::cast<unsigned long>(main_thread.attr("ident")));
    set_poll(&hear_python);
    m.def("close", &close_core);
    nb::module_::import_("atexit").attr("register")(m.attr("close"));
}
