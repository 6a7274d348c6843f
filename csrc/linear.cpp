// Matrices and rows: embeddings, norms and products, as loops around the inner ones of isa.h.
#include <algorithm>
#include <cstring>

#include "isa.h"
#include "kernels.h"
#include "quantize.h"
#include "scratch.h"
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

struct alignas(64) Line {
    uint8_t bytes[64];
};

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

// Fewer rows than this every thread prepares for itself: it takes a microsecond or four, about as
// long as to share the work and to wait for each other.
constexpr int64_t kAlone = 4;

// The inputs of a product, made from x: normalized if asked for, then rounded if w is quantized.
struct Prepared {
    const float* floats;
    const uint16_t* pairs;  // BF16, (n, k rounded up to even)
    Quantized rounded;
};

int64_t even(int64_t k) { return (k + 1) / 2 * 2; }

Quantized cut_quantized(Cutter& cutter, int64_t n, int64_t groups) {
    Quantized out{};
    out.q = cutter.take<int8_t>(n * groups * kGroup);
    out.scale = cutter.take<float>(n * groups);
    out.start = cutter.take<int32_t>(n * groups * 8);
    out.sum = cutter.take<float>(n * groups * 8);
    out.groups = groups;
    return out;
}

Prepared cut_prepared(Cutter& cutter, const Matrix& w, const float* x, const Norm* norm,
                      int64_t n) {
    if (w.type() == Type::BF16) {
        const int64_t len = n * even(w.n_cols());
        if (isa().dot_pairs) return {nullptr, cutter.take<uint16_t>(len), {}};
        return {cutter.take<float>(len), nullptr, {}};
    }
    if (is_float(w.type())) return {norm ? cutter.take<float>(n * w.n_cols()) : x, nullptr, {}};
    return {nullptr, nullptr, cut_quantized(cutter, n, divide_up(w.n_cols(), kGroup))};
}

// To bf16; without an instruction for pairs as floats, of each pair the second first.
void round_row(const float* x, int64_t k, const Prepared& out, int64_t i) {
    if (out.pairs) {
        auto* to = const_cast<uint16_t*>(out.pairs) + i * even(k);
        isa().round_bf16(x, k, to);
        if (k % 2) to[k] = 0;
        return;
    }
    uint16_t* rounded = scratch<uint16_t>(static_cast<size_t>(even(k)), 0);
    isa().round_bf16(x, k, rounded);
    if (k % 2) rounded[k] = 0;
    float* to = const_cast<float*>(out.floats) + i * even(k);
    for (int64_t j = 0; j < even(k); ++j) to[j] = bf16_to_float(rounded[j ^ 1]);
}

void prepare_rows(const Matrix& w, const float* x, const Norm* norm, Team::Range rows,
                  const Prepared& out) {
    const int64_t k = w.n_cols();
    const bool quantizes = !is_float(w.type()), rounds = quantizes || w.type() == Type::BF16;
    if (!rounds && !norm) return;
    const Coding c = quantizes ? coding(w.type(), isa().signed_bytes) : Coding{};
    float* normalized = rounds && norm ? scratch<float>(static_cast<size_t>(k), 0) : nullptr;
    for (int64_t i = rows.begin; i < rows.end; ++i) {
        const float* row = x + i * k;
        if (norm) {
            float* to = rounds ? normalized : const_cast<float*>(out.floats) + i * k;
            isa().layer_norm(row, norm->weight, norm->bias, norm->eps, k, to);
            row = to;
        }
        if (quantizes)
            isa().quantize_row(row, k, c.zero, c.subs, out.rounded, i);
        else if (rounds)
            round_row(row, k, out, i);
    }
}

Prepared prepare(Team& team, const Matrix& w, const float* x, const Norm* norm, int64_t n,
                 uint8_t* shared) {
    if (n < kAlone) {
        Cutter measure(nullptr);
        cut_prepared(measure, w, x, norm, n);
        Cutter cutter(scratch<Line>(measure.used() / sizeof(Line), 0)->bytes);
        const Prepared out = cut_prepared(cutter, w, x, norm, n);
        prepare_rows(w, x, norm, {0, n}, out);
        return out;
    }
    Cutter cutter(shared);
    const Prepared out = cut_prepared(cutter, w, x, norm, n);
    prepare_rows(w, x, norm, team.share(n), out);
    team.barrier();
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
    const int64_t k = w.type() == Type::BF16 ? even(w.n_cols()) : w.n_cols();
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

void multiply(const Matrix& w, int64_t pair, const uint16_t* x, int64_t t, int64_t n, float* acc) {
    const int64_t k = even(w.n_cols());
    for (int64_t i = 0; i < k; i += kGroup) {
        const uint8_t* panels[2] = {w.group(pair, i / kGroup, 0), w.group(pair, i / kGroup, 1)};
        for (const uint8_t* panel : panels) prefetch(panel + kAhead, w.group_bytes());
        isa().dot_pairs(panels, std::min<int64_t>(kGroup, k - i) / 2, x + t * k + i, k, n, acc);
    }
}

// Bytes of a token's inputs.
int64_t bytes_a_token(const Matrix& w) {
    if (!is_float(w.type())) return w.n_cols();
    return w.n_cols() * (w.type() == Type::BF16 && isa().dot_pairs ? 2 : 4);
}

template <class X>
void multiply_share(Team& team, const Matrix& w, const X& x, int64_t n, const float* bias,
                    Activation activation, const float* residual, float* y) {
    const int64_t m = w.n_rows();
    const int64_t block = token_block(bytes_a_token(w));
    // Threads split the rows, so each weight is read and unpacked by one of them only.
    const auto [begin, end] = team.share(divide_up(m, kStripRows));
    alignas(64) float acc[kMaxTokenBlock * kStripRows];
    for (int64_t t = 0; t < n; t += block) {
        const int64_t count = std::min(block, n - t);
        for (int64_t pair = begin; pair < end; ++pair) {
            const int64_t row = pair * kStripRows, valid = std::min<int64_t>(kStripRows, m - row);
            std::memset(acc, 0, static_cast<size_t>(count * kStripRows) * sizeof(float));
            multiply(w, pair, x, t, count, acc);
            isa().finish(acc, count, static_cast<int>(valid), bias ? bias + row : nullptr,
                         activation, residual ? residual + t * m + row : nullptr, y + t * m + row,
                         m);
        }
    }
}

}  // namespace

size_t linear_scratch(const Matrix& w, const Norm* norm, int64_t n) {
    Cutter cutter(nullptr);
    cut_prepared(cutter, w, nullptr, norm, n);
    return cutter.used();
}

void linear(Team& team, const Matrix& w, const float* x, const Norm* norm, int64_t n,
            const float* bias, Activation activation, const float* residual, float* y,
            uint8_t* shared) {
    if (n == 0) return;
    const Prepared inputs = prepare(team, w, x, norm, n, shared);
    if (inputs.pairs)
        multiply_share(team, w, inputs.pairs, n, bias, activation, residual, y);
    else if (inputs.floats)
        multiply_share(team, w, inputs.floats, n, bias, activation, residual, y);
    else
        multiply_share(team, w, inputs.rounded, n, bias, activation, residual, y);
}

void prefetch_share(const Team& team, const Matrix& w) {
    constexpr int64_t kBytes = 16 << 10;
    const auto [begin, end] = team.share(divide_up(w.n_rows(), kStripRows));
    if (begin == end) return;
    const int64_t nbytes = (end - begin) * w.n_groups() * 2 * w.group_bytes();
    prefetch(w.group(begin, 0, 0), std::min(kBytes, nbytes));
}

// ---- rows of weights ----

namespace {

// Group g of row `row`: up to 128 floats.
void embed_group(const Matrix& w, int64_t row, int64_t g, int64_t count, float* y) {
    const int64_t lane = row % kRows;
    const uint8_t* group = w.group(row / kStripRows, g, static_cast<int>(row / kRows % 2));
    if (is_float(w.type())) {
        alignas(64) float strip[kGroup * kStripRows];
        const bool pairs = w.type() == Type::BF16;
        isa().unpack_floats(w.type(), group, pairs ? even(count) : count, 0, strip);
        for (int64_t i = 0; i < count; ++i) y[i] = strip[(pairs ? i ^ 1 : i) * kStripRows + lane];
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

void embed(Team& team, const Matrix& w, const int32_t* ids, int64_t n, float* y) {
    const int64_t k = w.n_cols();
    const auto [begin, end] = team.share(n);
    for (int64_t t = begin; t < end; ++t)
        for (int64_t i = 0; i < k; i += kGroup)
            embed_group(w, ids[t], i / kGroup, std::min<int64_t>(kGroup, k - i), y + t * k + i);
}

void layer_norm(Team& team, const float* x, const Norm& norm, int64_t n, int64_t k, float* y) {
    const auto [begin, end] = team.share(n);
    for (int64_t t = begin; t < end; ++t)
        isa().layer_norm(x + t * k, norm.weight, norm.bias, norm.eps, k, y + t * k);
}

}  // namespace starcoder
