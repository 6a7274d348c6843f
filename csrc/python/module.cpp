// Python's door to the core: checks, releases the interpreter lock, calls. No arithmetic.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "probe/peaks.h"
#include "python/checks.h"
#include "python/interpreter.h"
#include "simd/isa.h"
#include "sys/mapped_files.h"
#include "sys/threads.h"
#include "sys/weight_memory.h"
#include "types/decode.h"
#include "types/encode.h"

using namespace nanobind::literals;
using namespace starcoder;

namespace {

// ---- types and weights ----

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

    bind_graph(m);
    nb::module_ testing = m.def_submodule("testing", "Operations one by one, for tests.");
    bind_testing(testing);

    m.def("packed_bytes", &py_packed_bytes, "type"_a, "n_rows"_a, "n_cols"_a);
    m.def("dequantize", &py_dequantize, "type"_a, "data"_a, "out"_a);
    m.def("requantize", &py_requantize, "source"_a, "data"_a, "n_rows"_a, "n_cols"_a, "type"_a,
          "fused"_a, "out"_a);
    m.def("quantize", &py_quantize, "type"_a, "x"_a, "fused"_a, "out"_a);
    m.def("first_non_finite", &py_first_non_finite, "type"_a, "data"_a);

    m.def(
        "collapse_pages", [](double seconds) { return huge_pages().collapse(seconds); },
        "seconds"_a, nb::call_guard<Unlocked>());

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
