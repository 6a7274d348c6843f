// The operations of kernels.h: loops over rows and threads around the inner loops of isa.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"
#include "kernels.h"
#include "quantize.h"
#include "threads.h"

namespace starcoder {

namespace {

constexpr int kStripRows = 2 * kRows;  // two panels are multiplied together

// Inputs unpacked at a time: 8 strips are 48 KB at most, mostly 36, and stay near the multipliers
// while all tokens of a block pass by.
constexpr int64_t kStrips = 8;

// Tokens that share one unpacking. Their activations should stay in the second-level cache: 512 KB.
int64_t token_block(int64_t bytes_a_token) {
    return std::clamp<int64_t>((512 << 10) / bytes_a_token, 32, 256);
}
constexpr int64_t kMaxTokenBlock = 256;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The zero point and the number of scales a group of a quantized type.
struct Coding {
    int zero, subs;
};

Coding coding(Type type, bool signed_bytes) {
    return dispatch(type, [&](auto, auto panel) {
        using P = typename decltype(panel)::type;
        const bool is_signed = signed_bytes && (P::Bits == 8 || P::Codebook);
        return Coding{P::Min || is_signed ? 0 : P::Zero, P::Subs};
    });
}

// Buffers that live as long as the calling thread: a step of decoding allocates nothing.
template <class T>
T* scratch(size_t n, int which) {
    thread_local std::vector<T> buffers[2];
    if (buffers[which].size() < n) buffers[which].resize(n);
    return buffers[which].data();
}

Quantized quantize(const Matrix& w, const float* x, int64_t n) {
    const int64_t k = w.n_cols(), groups = divide_up(k, kGroup);
    const auto size = static_cast<size_t>(n * groups);
    Quantized out{scratch<int8_t>(size * kGroup, 0), scratch<float>(size, 0),
                  scratch<int32_t>(size * 8, 0), scratch<float>(size * 8, 1), groups};
    const Coding c = coding(w.type(), isa().signed_bytes);
    const auto rows = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            isa().quantize_row(x + i * k, k, c.zero, c.subs, out, i);
    };
    // One row takes a microsecond or four: less than waking the others.
    n < 4 ? rows(0, n) : parallel_for(n, rows);
    return out;
}

// Asks for memory that will be unpacked soon. The hardware sees streams too, but stops at every
// page; without this, unpacking waits for memory and multiplying leaves it idle.
void prefetch(const uint8_t* data, int64_t nbytes) {
    for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(data + i);
}

// Rows 32 * pair .. 32 * pair + 32 times tokens t .. t + n: acc (n, 32).
void multiply(const Matrix& w, int64_t pair, const Quantized& x, int64_t t, int64_t n, float* acc) {
    if (n <= kFewTokens) return isa().dot_few(w.type(), w.group(pair, 0, 0), x, t, n, acc);
    Strip strips[kStrips];
    const int64_t step = n <= 8 ? 1 : kStrips;
    for (int64_t g = 0; g < x.groups; g += step) {
        const int64_t count = std::min(step, x.groups - g);
        for (int64_t s = 0; s < count; ++s)
            for (int half = 0; half < 2; ++half) {
                const uint8_t* group = w.group(pair, g + s, half);
                prefetch(group + kAhead, w.group_bytes());
                isa().unpack(w.type(), group, half, strips[s]);
            }
        isa().dot(w.type(), strips, count, x, t, n, g, acc);
    }
}

void multiply(const Matrix& w, int64_t pair, const float* x, int64_t t, int64_t n, float* acc) {
    const int64_t k = w.n_cols();
    alignas(64) float strip[kGroup * kStripRows];
    for (int64_t i = 0; i < k; i += kGroup) {
        const int64_t count = std::min<int64_t>(kGroup, k - i);
        for (int half = 0; half < 2; ++half) {
            const uint8_t* group = w.group(pair, i / kGroup, half);
            prefetch(group + kAhead, w.group_bytes());
            isa().unpack_floats(w.type(), group, count, half, strip);
        }
        isa().dot_floats(strip, count, x + t * k + i, k, n, acc);
    }
}

template <class X>
void linear_with(const Matrix& w, const X& x, int64_t n, const float* bias, Activation activation,
                 const float* residual, float* y) {
    const int64_t m = w.n_rows(), pairs = divide_up(m, kStripRows);
    const int64_t block = token_block(w.n_cols() * (is_float(w.type()) ? 4 : 1));
    // Threads split the rows, so each weight is read and unpacked by one of them only.
    parallel_for(pairs, [&](int64_t begin, int64_t end) {
        alignas(64) float acc[kMaxTokenBlock * kStripRows];
        for (int64_t t = 0; t < n; t += block) {
            const int64_t count = std::min(block, n - t);
            for (int64_t pair = begin; pair < end; ++pair) {
                const int64_t row = pair * kStripRows,
                              valid = std::min<int64_t>(kStripRows, m - row);
                std::memset(acc, 0, static_cast<size_t>(count * kStripRows) * sizeof(float));
                multiply(w, pair, x, t, count, acc);
                isa().finish(acc, count, static_cast<int>(valid), bias ? bias + row : nullptr,
                             activation, residual ? residual + t * m + row : nullptr,
                             y + t * m + row, m);
            }
        }
    });
}

}  // namespace

void linear(const Matrix& w, const float* x, int64_t n, const float* bias, Activation activation,
            const float* residual, float* y) {
    if (is_float(w.type()))
        linear_with(w, x, n, bias, activation, residual, y);
    else
        linear_with(w, quantize(w, x, n), n, bias, activation, residual, y);
}

// ---- rows of weights ----

namespace {

// Group g of row `row`: up to 128 floats.
void embed_group(const Matrix& w, int64_t row, int64_t g, int64_t count, float* y) {
    const int64_t lane = row % kRows;
    const uint8_t* group = w.group(row / kStripRows, g, static_cast<int>(row / kRows % 2));
    if (is_float(w.type())) {
        alignas(64) float strip[kGroup * kStripRows];
        isa().unpack_floats(w.type(), group, count, 0, strip);
        for (int64_t i = 0; i < count; ++i) y[i] = strip[i * kStripRows + lane];
        return;
    }
    Strip strip;
    isa().unpack(w.type(), group, 0, strip);
    dispatch(w.type(), [&](auto, auto p) {
        using P = typename decltype(p)::type;
        const bool is_signed = isa().signed_bytes && (P::Bits == 8 || P::Codebook);
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t code = strip.code[i / 4][4 * lane + i % 4];
            const int value = is_signed ? static_cast<int8_t>(code) : code - P::Zero;
            const int64_t sub = i * P::Subs / kGroup;
            y[i] = strip.scale[sub][lane] * static_cast<float>(value);
            if constexpr (P::Min) y[i] += strip.min[sub][lane];
        }
    });
}

}  // namespace

void embed(const Matrix& w, const int32_t* ids, int64_t n, float* y) {
    const int64_t k = w.n_cols();
    parallel_pieces(n, 16, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            for (int64_t i = 0; i < k; i += kGroup)
                embed_group(w, ids[t], i / kGroup, std::min<int64_t>(kGroup, k - i), y + t * k + i);
    });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                int64_t k, float* y) {
    parallel_pieces(n, 4, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            isa().layer_norm(x + t * k, weight, bias, eps, k, y + t * k);
    });
}

// ---- attention ----

namespace {

constexpr int64_t kBlock = 16;  // positions in a block of the cache

// Keys that one softmax spans. Longer contexts are merged from parts of this length, always
// counted from position 0, so that a row's result does not depend on who computes it.
constexpr int64_t kPart = 256;

const int32_t* block_table(const Rows& rows, int64_t i) {
    const int32_t* after = std::upper_bound(rows.row_starts, rows.row_starts + rows.n_sequences, i);
    return rows.block_tables + (after - rows.row_starts - 1) * rows.table_len;
}

// The query heads of one token that share one key/value head.
struct Queries {
    const float* rows;      // (size, width), scaled by 1 / sqrt(head_dim)
    const int32_t* blocks;  // of the sequence
    int64_t kv_head, size, n_keys;
};

// What one part of the keys adds: acc (size, width), and the softmax's maximum and sum of each.
struct Part {
    float *acc, *max, *sum;
    static int64_t floats(int64_t size, int64_t width) { return size * (width + 2); }
    Part(float* base, int64_t size, int64_t width)
        : acc(base), max(base + size * width), sum(max + size) {}
};

void attend_part(const Queries& q, const Heads& heads, const Cache& cache, int64_t part,
                 float* weights, const Part& out) {
    const int64_t d = heads.width(), first = part * kPart;
    const int64_t keys = std::min(kPart, q.n_keys - first);
    const auto at = [&](int64_t key) {  // of a block's keys and values in the cache
        return (q.blocks[(first + key) / kBlock] * heads.n_kv_heads + q.kv_head) * d * kBlock;
    };
    for (int64_t key = 0; key < keys; key += kBlock)
        isa().scores(q.rows, q.size, d, cache.keys + at(key), weights + key, kPart);
    const int64_t padded = divide_up(keys, kBlock) * kBlock;
    for (int64_t h = 0; h < q.size; ++h)
        isa().softmax(weights + h * kPart, padded, keys, out.max + h, out.sum + h);
    std::memset(out.acc, 0, static_cast<size_t>(q.size * d) * sizeof(float));
    for (int64_t key = 0; key < keys; key += kBlock)
        isa().mix(weights + key, kPart, std::min(kBlock, keys - key), q.size, d,
                  cache.values + at(key), out.acc);
}

void merge_part(const Part& into, const Part& part, int64_t size, int64_t d) {
    for (int64_t h = 0; h < size; ++h)
        isa().merge(into.acc + h * d, into.max + h, into.sum + h, part.acc + h * d, part.max[h],
                    part.sum[h], d);
}

// One call of attention: rows times key/value heads are its independent pieces of work.
class Attention {
  public:
    Attention(const float* qkv, const Heads& heads, const Rows& rows, const Cache& cache, float* y)
        : qkv_(qkv),
          heads_(heads),
          rows_(rows),
          cache_(cache),
          y_(y),
          size_(heads.n_heads / heads.n_kv_heads),
          width_(heads.width()) {}

    int64_t part_floats() const { return Part::floats(size_, width_); }
    int64_t scratch_floats() const { return size_ * (width_ + kPart) + 2 * part_floats(); }
    int64_t n_parts(int64_t row) const { return rows_.positions[row] / kPart + 1; }

    // All parts of one piece, one after the other.
    void whole(int64_t piece, float* buffer) const {
        const Queries q = queries_of(piece, buffer);
        float* weights = buffer + size_ * width_;
        const Part total(weights + size_ * kPart, size_, width_);
        const Part next(total.acc + part_floats(), size_, width_);
        attend_part(q, heads_, cache_, 0, weights, total);
        for (int64_t part = 1; part * kPart < q.n_keys; ++part) {
            attend_part(q, heads_, cache_, part, weights, next);
            merge_part(total, next, size_, width_);
        }
        write(piece, total);
    }

    // One part of one piece, left at `parts`; and the merging of all of them, in order.
    void one_part(int64_t piece, int64_t part, float* buffer, float* parts) const {
        const Queries q = queries_of(piece, buffer);
        attend_part(q, heads_, cache_, part, buffer + size_ * width_,
                    Part(parts + part * part_floats(), size_, width_));
    }
    void merge(int64_t piece, float* parts) const {
        const Part total(parts, size_, width_);
        for (int64_t part = 1; part < n_parts(piece / heads_.n_kv_heads); ++part)
            merge_part(total, Part(parts + part * part_floats(), size_, width_), size_, width_);
        write(piece, total);
    }

  private:
    Queries queries_of(int64_t piece, float* queries) const {
        const int64_t row = piece / heads_.n_kv_heads, kv_head = piece % heads_.n_kv_heads;
        const float* from = qkv_ + row * heads_.row() + kv_head * size_ * heads_.head_dim;
        const float scale = 1.0f / std::sqrt(static_cast<float>(heads_.head_dim));
        for (int64_t h = 0; h < size_; ++h)
            for (int64_t i = 0; i < width_; ++i)
                queries[h * width_ + i] =
                    i < heads_.head_dim ? from[h * heads_.head_dim + i] * scale : 0.0f;
        return {queries, block_table(rows_, row), kv_head, size_, rows_.positions[row] + 1};
    }

    void write(int64_t piece, const Part& total) const {
        float* to = y_ + piece * size_ * heads_.head_dim;
        for (int64_t h = 0; h < size_; ++h) {
            const float scale = 1.0f / total.sum[h];
            for (int64_t i = 0; i < heads_.head_dim; ++i)
                to[h * heads_.head_dim + i] = total.acc[h * width_ + i] * scale;
        }
    }

    const float* qkv_;
    const Heads& heads_;
    const Rows& rows_;
    const Cache& cache_;
    float* y_;
    int64_t size_, width_;
};

}  // namespace

void store_kv(const float* qkv, int64_t n, const Heads& heads, const Rows& rows,
              const Cache& cache) {
    const int64_t d = heads.width(), hd = heads.head_dim;
    const auto one = [&](int64_t i, int64_t head, half* row) {
        const float* key = qkv + i * heads.row() + (heads.n_heads + head) * hd;
        const int64_t slot = rows.positions[i] % kBlock;
        const int64_t block = block_table(rows, i)[rows.positions[i] / kBlock];
        const int64_t at = (block * heads.n_kv_heads + head) * d * kBlock;
        isa().narrow(key, hd, row);
        for (int64_t j = 0; j < hd; ++j) cache.keys[at + j * kBlock + slot] = row[j];
        isa().narrow(key + heads.n_kv_heads * hd, hd, cache.values + at + slot * d);
    };
    parallel_pieces(n, 32, [&](int64_t begin, int64_t end) {
        half* row = scratch<half>(static_cast<size_t>(hd), 0);
        for (int64_t i = begin; i < end; ++i)
            for (int64_t head = 0; head < heads.n_kv_heads; ++head) one(i, head, row);
    });
}

void attention(const float* qkv, int64_t n, const Heads& heads, const Rows& rows,
               const Cache& cache, float* y) {
    const Attention task(qkv, heads, rows, cache, y);
    const auto buffer_len = static_cast<size_t>(task.scratch_floats());
    const int64_t pieces = n * heads.n_kv_heads;
    const int64_t longest = *std::max_element(rows.positions, rows.positions + n) / kPart + 1;
    if (longest == 1 || pieces >= 4 * n_threads()) {
        parallel_pieces(pieces, pieces >= 64 ? 4 : 1, [&](int64_t begin, int64_t end) {
            float* buffer = scratch<float>(buffer_len, 1);
            for (int64_t piece = begin; piece < end; ++piece) task.whole(piece, buffer);
        });
        return;
    }
    // Few rows over many keys, as in decoding: threads share the parts of each row.
    const int64_t stride = longest * task.part_floats();
    float* parts = scratch<float>(static_cast<size_t>(pieces * stride), 0);
    parallel_pieces(pieces * longest, 1, [&](int64_t begin, int64_t end) {
        float* buffer = scratch<float>(buffer_len, 1);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t piece = i / longest, part = i % longest;
            if (part < task.n_parts(piece / heads.n_kv_heads))
                task.one_part(piece, part, buffer, parts + piece * stride);
        }
    });
    for (int64_t piece = 0; piece < pieces; ++piece) task.merge(piece, parts + piece * stride);
}

}  // namespace starcoder
