// THE CONTRACT: every operation of the core, arrays in, arrays out.
//
// Axes: n tokens (rows of a batch), k inputs, m outputs, h heads, d dimensions of a head. All float
// arrays are row-major float32 and contiguous. Callers check shapes; all that is ever
// thrown is std::bad_alloc.
//
// One answer: element (token, output) of any result is made by the same operations in the same
// order whatever n is, however many threads run, and on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "types/blocks.h"

namespace starcoder {

class Schedule;  // schedule.h

// ---- types (quantize.cpp) ----

int block_len(Type type);    // weights in a block
int block_bytes(Type type);  // bytes of a block

float half_to_float(half h);
half float_to_half(float f);  // to nearest, ties to even

// out (n_rows, n_cols) = the floats that the blocks at `data` stand for, exactly.
void dequantize(Type type, const void* data, int64_t n_rows, int64_t n_cols, float* out);

// ---- floats -> blocks (encode.cpp) ----

// out = blocks of type `to` for the weights (n_rows, n_cols) at `data`, both types in whole blocks
// a row. Threads share the blocks; nothing about a block depends on another one.
//
// F16, BF16: to nearest, ties to even, NaN stays NaN. Q4_0 ... Q8_0: the bytes of ggml's reference.
// The K types and IQ4_NL: scales and codes searched for the least squared error. A block with a
// weight that is not finite stands for NaN everywhere.
//
// The reference differs by how it was compiled: with `fused`, Q4_0 ... Q5_1 have the codes of a
// build that fuses multiplication and addition, as ggml's own programs do where the machine can.
void requantize(Type from, const void* data, Type to, int64_t n_rows, int64_t n_cols, bool fused,
                void* out);

// The same from floats.
inline void quantize(Type type, const float* x, int64_t n_rows, int64_t n_cols, bool fused,
                     void* out) {
    requantize(Type::F32, x, type, n_rows, n_cols, fused, out);
}

// The place of the first weight that is NaN or infinite, of n in whole blocks; -1 if none is.
int64_t first_non_finite(Type type, const void* data, int64_t n);

// ---- the machine's limits (limits.cpp) ----

enum class Arithmetic : int { Int8 = 0, BF16 = 1, F32 = 2 };

struct Peak {
    double per_second;  // multiply-adds of all threads together; 0: no instruction for it
    double product;     // the mean of the products, which is 15
};
Peak peak(Arithmetic kind, double seconds);

struct Reading {
    double per_second;  // bytes, by all threads together, in all passes
    uint64_t bits;      // all words or-ed together: what memory was filled with
};
// Memory to be read: `nbytes`, whole lines of 64, filled with words `bits`. Throws std::bad_alloc.
class Memory {
  public:
    Memory(int64_t nbytes, uint64_t bits);
    Reading read(int passes) const;

  private:
    int64_t n_lines_;
    std::shared_ptr<uint8_t> data_;
};

// ---- weights (pack.cpp) ----

// A matrix (m, k), repacked for multiplying: see panels.h. Made from rows as a file holds them;
// `data` is not needed afterwards. Throws std::bad_alloc.
class Matrix {
  public:
    Matrix(Type type, const void* data, int64_t n_rows, int64_t n_cols);

    Type type() const { return type_; }
    int64_t n_rows() const { return n_rows_; }
    int64_t n_cols() const { return n_cols_; }
    size_t nbytes() const { return nbytes_; }

    int64_t n_groups() const { return n_groups_; }
    int64_t group_bytes() const { return group_bytes_; }

    // Group g (128 inputs) of the upper or lower 16 of rows 32 * pair .. 32 * pair + 32; of floats
    // both are one, at half 0. Whoever multiplies a pair reads memory from front to back.
    const uint8_t* group(int64_t pair, int64_t g, int half) const {
        return data_.get() + ((pair * n_groups_ + g) * 2 + half) * group_bytes_;
    }

    // What the numbers of each row are multiplied by in the end; null for types without: whole.h.
    const float* units() const { return units_; }

  private:
    Type type_;
    int64_t n_rows_, n_cols_, n_groups_, group_bytes_;
    size_t nbytes_;
    std::shared_ptr<uint8_t> data_;
    float* units_ = nullptr;
};

// ---- operations (linear.cpp, attention.cpp) ----
//
// An operation appends what is to be done to a schedule; it is done when the schedule is run. What
// it is given must live until then, but for `Norm`, `Heads`, `Rows` and `Cache`, which are copied.
// `shared` is memory for all threads, on a cache line, of the size that the function before it
// says.

enum class Activation : int { None = 0, GeluTanh = 1, GeluErf = 2 };

struct Norm {
    const float *weight, *bias;  // (k)
    float eps;
};

// Rows of inputs, rounded to 8 bits as quantized weights take them: isa.h has the layout.
struct Rounded;

// Bytes of n rows of inputs, rounded for w; 0 if w takes floats.
size_t rounded_bytes(const Matrix& w, int64_t n);

// x (n, k): floats, with or without a norm; or what a product before left, rounded for `w`.
struct Input {
    const float* floats;
    std::optional<Norm> norm;
    const Rounded* rounded;
};

// y (n, m): floats; or rounded for `reader`, the product that takes them next.
struct Output {
    float* floats;
    Rounded* rounded;
    const Matrix* reader;
};

// y (n, m) = activation(norm(x (n, k)) . w (m, k)^T + bias (m)) + residual (n, m)
// `bias` and `residual` may be null; `residual` may be y itself, and is null if y is rounded. With
// quantized weights, the inputs are rounded to 8 bits, one scale for every 128; products and sums
// in between are exact.
size_t linear_scratch(const Matrix& w, const Input& x, int64_t n);
void linear(Schedule& schedule, const Matrix& w, const Input& x, int64_t n, const float* bias,
            Activation activation, const float* residual, const Output& y, uint8_t* shared);

// y (n, k) = rows `ids` (n) of w (m, k), plus rows `places` (n) of `positions` (n_positions, k), if
// that is not null.
void embed(Schedule& schedule, const Matrix& w, const int32_t* ids, int64_t n,
           const float* positions, const int32_t* places, float* y);

// y (n, k) = (x - mean) / sqrt(variance + eps) * weight (k) + bias (k), a row at a time
void layer_norm(Schedule& schedule, const float* x, const Norm& norm, int64_t n, int64_t k,
                float* y);

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
    static Cache of(uint16_t* keys, uint16_t* values, int64_t block_len, int64_t n_layers) {
        return {keys, values, block_len, n_layers * kRun * block_len};
    }
    int64_t block(int64_t i) const { return i / kRun * run_len + i % kRun * block_len; }
};

struct Heads {
    int64_t n_heads, n_kv_heads, head_dim;
    bool
        bf16;  // keys, values, queries and weights are rounded to bf16; else keys and values to f16
    int64_t width() const { return (head_dim + 15) / 16 * 16; }
    int64_t row() const { return (n_heads + 2 * n_kv_heads) * head_dim; }
};

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
