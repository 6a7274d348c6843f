// What is checked of Python's arrays before anything runs. Behind these checks nothing is checked
// again.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <optional>

#include "kernels.h"

namespace starcoder {

namespace nb = nanobind;

template <class T, int N>
using In = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
template <class T>
using Maybe = std::optional<T>;

void require(bool fits, const char* what);  // throws std::invalid_argument

template <class A>
int64_t size(const A& array, int axis) {
    return static_cast<int64_t>(array.shape(static_cast<size_t>(axis)));
}

// Only what a file may have reaches the kernels.
Type checked_type(int number);
Activation checked_activation(int number);

// Where the rows of a batch stand, and the cache, checked against each other.
Rows checked_rows(int64_t n, int64_t n_blocks, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
                  In<int32_t, 2> block_tables);

Heads checked_heads(int64_t qkv_width, int64_t n_heads, int64_t n_kv_heads, bool bf16);

// ---- parts of the module ----

void bind_graph(nb::module_& m);
void bind_testing(nb::module_& m);

}  // namespace starcoder
