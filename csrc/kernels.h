// THE CONTRACT: the operations that a model is made of, arrays in, arrays out.
//
// Axes: n tokens (rows of a batch), k inputs, m outputs, h heads, d dimensions of a head. All float
// arrays are row-major float32 and contiguous. Callers check shapes; all that is ever thrown is
// std::bad_alloc.
//
// An operation appends what is to be done to a schedule (sys/schedule.h); it is done when that is
// run. What it is given must live until then, but for `Norm`, `Heads`, `Rows` and `Cache`, which
// are copied. `shared` is memory for all threads, on a cache line, of the size that the function
// before it says.
//
// One answer: element (token, output) of any result is made by the same operations in the same
// order whatever n is, however many threads run, and on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "types/activation.h"
#include "types/matrix.h"

namespace starcoder {

class Schedule;
struct ActivationGroup;  // of 128 inputs, quantized to 8 bits: simd/activations.h

// ---- products (ops/linear.cpp) ----

// (x - mean) / sqrt(variance + eps) * weight + bias; RMS norm, where there is no bias: x /
// sqrt(mean of squares + eps) * weight.
struct Norm {
    const float *weight, *bias;  // (k)
    float eps;
};

// Bytes of n rows of inputs, quantized for w; 0 if w takes floats.
size_t quantized_bytes(const Matrix& w, int64_t n);

// x (n, k): floats, with or without a norm; or what a product before left, quantized for w.
struct Input {
    const float* floats;
    std::optional<Norm> norm;
    const ActivationGroup* quantized;
};

// y (n, m): floats; or quantized for `reader`, the product that takes them next.
struct Output {
    float* floats;
    ActivationGroup* quantized;
    const Matrix* reader;
};

// y (n, m) = activation(norm(x (n, k)) . w (m, k)^T + bias (m)) + residual (n, m)
// `bias` and `residual` may be null; `residual` may be y itself, and is null if y is quantized.
// With quantized weights, the inputs are rounded to 8 bits, one scale for every 128; products and
// sums in between are exact.
size_t linear_scratch(const Matrix& w, int64_t n);  // none if x is quantized already
void linear(Schedule& schedule, const Matrix& w, const Input& x, int64_t n, const float* bias,
            Activation activation, const float* residual, const Output& y, uint8_t* shared);

// ---- rows (ops/rows.cpp) ----

// y (n, k) = rows `ids` (n) of w (m, k), plus rows `places` (n) of `positions` (n_positions, k), if
// that is not null.
void embed(Schedule& schedule, const Matrix& w, const int32_t* ids, int64_t n,
           const float* positions, const int32_t* places, float* y);

// y (n, k) = norm(x)
void norm(Schedule& schedule, const float* x, const Norm& norm, int64_t n, int64_t k, float* y);

// y (n, m) = activation(gate) * up; y may be one of them.
void gated(Schedule& schedule, const float* gate, const float* up, int64_t n, int64_t m,
           Activation activation, float* y);

// y, rows `stride` apart, = x (n, k)
void copy_columns(Schedule& schedule, const float* x, int64_t n, int64_t k, float* y,
                  int64_t stride);

// y (r, k) = rows `rows` (r) of x
void select(Schedule& schedule, const float* x, const int32_t* rows, int64_t r, int64_t k,
            float* y);

// ---- attention (ops/attention.cpp, ops/kv_cache.cpp) ----

// Where the tokens of a batch stand: row i has position positions[i] in sequence s, for
// row_starts[s] <= i < row_starts[s + 1]; position p of s is slot p % 16 of cache block
// block_tables[s * table_len + p / 16].
struct Rows {
    const int32_t* positions;     // (n)
    const int32_t* row_starts;    // (n_sequences + 1)
    const int32_t* block_tables;  // (n_sequences, table_len)
    int64_t n_sequences, table_len;
};

// One layer of the key/value cache, f16 or bf16; d is rounded up to a multiple of 16 with zeros.
// bf16 has two dimensions of a key side by side, and two positions of a value. Of each 16 blocks
// those of one layer lie one after the other, then those of the next layer: a run.
struct Cache {
    static constexpr int64_t kRun = 16;
    uint16_t* keys;     // blocks of (n_kv_heads, d, 16) or (n_kv_heads, d / 2, 16, 2)
    uint16_t* values;   // blocks of (n_kv_heads, 16, d) or (n_kv_heads, 16 / 2, d, 2)
    int64_t block_len;  // numbers from one block of a run to the next, in keys as in values
    int64_t run_len;    // and from one run to the next

    // Layer 0 of n_layers.
    static Cache of(uint16_t* keys, uint16_t* values, int64_t block_len, int64_t n_layers) {
        return {keys, values, block_len, n_layers * kRun * block_len};
    }
    Cache layer(int64_t i) const {
        return {keys + i * kRun * block_len, values + i * kRun * block_len, block_len, run_len};
    }
    int64_t block(int64_t i) const { return i / kRun * run_len + i % kRun * block_len; }
};

struct Heads {
    int64_t n_heads, n_kv_heads, head_dim;
    bool bf16;  // keys, values, queries and weights are rounded to bf16; else keys, values to f16

    int64_t width() const { return (head_dim + 15) / 16 * 16; }
    int64_t row() const { return (n_heads + 2 * n_kv_heads) * head_dim; }
    bool operator==(const Heads&) const = default;
};

// y = qkv (n, queries | keys | values), its queries and keys turned by their positions: number j
// and number j + d / 2 of a head are a point, turned by the angle whose cosine is
// table[position][0][j] and whose sine table[position][1][j]; `table` is (n_positions, 2, d / 2). y
// may be qkv.
void rotate(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads,
            const int32_t* positions, const float* table, float* y);

// Writes the keys and values of qkv (n, queries | keys | values) into the cache.
void store_kv(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads, const Rows& rows,
              const Cache& cache);

// y (n, n_heads * head_dim) = causal attention of the queries in qkv over the cache, the new
// tokens included. Query head i reads key/value head i * n_kv_heads / n_heads. n is 1 or more.
size_t attention_scratch(int64_t n, const Heads& heads, const Rows& rows, int n_threads);
// Schedules for as many rows of as many sequences differ only where this does.
int64_t attention_parts(int64_t n, const Rows& rows);
void attention(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads,
               const Rows& rows, const Cache& cache, float* y, uint8_t* shared);

}  // namespace starcoder
