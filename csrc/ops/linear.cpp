// Matrices and rows: embeddings, norms and products, as loops around the inner ones of isa.h.
#include <algorithm>
#include <cstring>

#include "simd/isa.h"
#include "kernels.h"
#include "types/decode.h"
#include "sys/schedule.h"
#include "sys/scratch.h"

namespace starcoder {

namespace {

// Groups unpacked at a time: two strips are 12 KB at most, and stay near the multipliers while all
// tokens of a block pass by. Eight leave a cache of 32 KB: tiles at 73 to 79 percent of the peak on
// Zen 4, with two at 80 (docs/log.md).
constexpr int64_t kStrips = 2;

// Tiles of few tokens that are multiplied straight from the panels, one after the other: codes are
// then unpacked in registers each time, while the multipliers are busy, and asked for line by line.
// Beyond, a strip pays. Q4_0 on Zen 4, 16 and 48 tokens: 168 tokens/s from strips, 289 without;
// 292 and 340. See docs/log.md.
constexpr int64_t kFewTiles = 6;
bool are_few(int64_t n) { return n <= kFewTiles * isa().few_tokens; }

// Tokens multiplied between one request for weights and the next; a multiple of every tile.
constexpr int64_t kSlice = 24;

// Tokens that share one unpacking, and the groups of their activations that stay in the
// second-level cache (400 or 540 KB) while several pairs of panels pass by.
constexpr int64_t kTokenBlock = 264;
constexpr int64_t kNearGroups = 8;       // of Rounded
constexpr int64_t kNearFloatGroups = 4;  // of floats

// Pairs of panels whose results are written together, a few tokens at a time: rows of results lie
// pages apart, and finding and writing them takes an eighth of the time. Four pairs are also one
// group of the next product's inputs.
constexpr int64_t kPairs = kGroup / kStripRows;
constexpr int64_t kFinished = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct alignas(64) Line {
    uint8_t bytes[64];
};

Coding coding(Type type, bool signed_bytes) {
    return dispatch(type, [&](auto, auto panel) {
        using P = typename decltype(panel)::type;
        const bool is_signed = signed_bytes && (P::Bits == 8 || P::Codebook);
        if (P::Whole) return Coding{P::Middle, P::Subs, P::Min, true};
        return Coding{P::Min || is_signed ? 0 : P::Zero, P::Subs, P::Min, false};
    });
}

// Fewer rows than this every thread prepares for itself: it takes a microsecond or four, about as
// long as to share the work and to wait for each other.
constexpr int64_t kAlone = 4;

// The inputs of a product, made from x: normalized if asked for, then rounded if w is quantized.
// What is not is laid out by groups, (n_groups, n, 128): rows of it would lie 2^n bytes apart, and
// a tile of twelve of them would share one set of eight cache lines.
struct Prepared {
    float* floats;
    uint16_t* pairs;  // BF16
    Quantized rounded;
};

int64_t even(int64_t k) { return (k + 1) / 2 * 2; }

Prepared cut_prepared(Cutter& cutter, const Matrix& w, int64_t n) {
    const int64_t len = n * w.n_groups() * kGroup;
    if (w.type() == Type::BF16 && isa().dot_pairs) return {nullptr, cutter.take<uint16_t>(len), {}};
    if (is_float(w.type())) return {cutter.take<float>(len), nullptr, {}};
    return {nullptr, nullptr, {cutter.take<Rounded>(n * w.n_groups()), n}};
}

// Row i of n, to the groups of `to`.
template <class T>
void lay_out(const T* row, int64_t k, int64_t n, int64_t i, T* to) {
    for (int64_t at = 0; at < k; at += kGroup)
        std::memcpy(to + at * n + i * kGroup, row + at,
                    static_cast<size_t>(std::min<int64_t>(kGroup, k - at)) * sizeof(T));
}

// To bf16; without an instruction for pairs as floats, of each pair the second first.
void round_row(const float* x, int64_t k, int64_t n, int64_t i, const Prepared& out) {
    uint16_t* rounded = scratch<uint16_t>(static_cast<size_t>(even(k)), 0);
    isa().round_bf16(x, k, rounded);
    if (k % 2) rounded[k] = 0;
    if (out.pairs) return lay_out(rounded, even(k), n, i, out.pairs);
    float* swapped = scratch<float>(static_cast<size_t>(even(k)), 1);
    for (int64_t j = 0; j < even(k); ++j) swapped[j] = bf16_to_float(rounded[j ^ 1]);
    lay_out(swapped, even(k), n, i, out.floats);
}

// Asks for memory that will be unpacked soon. The hardware sees streams too, but stops at every
// page; without this, unpacking waits for memory and multiplying leaves it idle.
void prefetch(const uint8_t* data, int64_t nbytes) {
    for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(data + i);
}

void prepare_rows(const Matrix& w, const Input& x, int64_t n, Pieces::Range rows,
                  const Prepared& out) {
    const int64_t k = w.n_cols();
    const auto& norm = x.norm;
    const bool quantizes = !is_float(w.type());
    const Coding c = quantizes ? coding(w.type(), isa().signed_bytes) : Coding{};
    float* normalized = norm ? scratch<float>(static_cast<size_t>(k), 0) : nullptr;
    const auto row_bytes = static_cast<int64_t>(k * static_cast<int64_t>(sizeof(float)));
    for (int64_t i = rows.begin; i < rows.end; ++i) {
        const float* row = x.floats + i * k;
        if (i + 1 < rows.end) prefetch(reinterpret_cast<const uint8_t*>(row + k), row_bytes);
        if (norm) {
            isa().layer_norm(row, norm->weight, norm->bias, norm->eps, k, normalized);
            row = normalized;
        }
        if (quantizes)
            isa().quantize_row(row, k, c, out.rounded.at(0, i), n);
        else if (w.type() == Type::BF16)
            round_row(row, k, n, i, out);
        else
            lay_out(row, k, n, i, out.floats);
    }
}

// For the calling thread alone.
Prepared prepare_alone(const Matrix& w, const Input& x, int64_t n) {
    Cutter measure(nullptr);
    cut_prepared(measure, w, n);
    Cutter cutter(scratch<Line>(measure.used() / sizeof(Line), 0)->bytes);
    const Prepared out = cut_prepared(cutter, w, n);
    prepare_rows(w, x, n, {0, n}, out);
    return out;
}

// Sums of several pairs of panels, (pairs, n, 32).
constexpr int64_t kSums = kPairs * kTokenBlock * kStripRows;

// Groups g .. end of rows 32 * pair .. 32 * pair + 32 times tokens t .. t + n: acc (n, 32). `next`
// is what will be unpacked after them.
void multiply_groups(const Matrix& w, int64_t pair, int64_t g, int64_t end, const uint8_t* next,
                     const Quantized& x, int64_t t, int64_t n, float* acc) {
    Strip strips[kStrips];
    const int64_t bytes_a_group = 2 * w.group_bytes();
    for (; g < end; g += kStrips) {
        const int64_t count = std::min(kStrips, end - g);
        for (int64_t s = 0; s < count; ++s)
            for (int half = 0; half < 2; ++half)
                isa().unpack(w.type(), w.group(pair, g + s, half), half, strips[s]);
        // What is unpacked next is asked for in slices, and is there in time.
        const uint8_t* ahead = g + kStrips < end ? w.group(pair, g + kStrips, 0) : next;
        const int64_t slice_bytes = divide_up(count * bytes_a_group, divide_up(n, kSlice));
        for (int64_t i = 0; i < n; i += kSlice, ahead += slice_bytes) {
            prefetch(ahead, slice_bytes);
            isa().dot(w.type(), strips, count, x.at(g, t + i), x.n_rows, std::min(kSlice, n - i),
                      acc + i * kStripRows);
        }
    }
}

// Pairs first .. first + pairs times tokens t .. t + n.
void multiply(const Matrix& w, int64_t first, int64_t pairs, const Quantized& x, int64_t t,
              int64_t n, float* acc) {
    const int64_t groups = w.n_groups(), few = isa().few_tokens;
    if (are_few(n)) {
        for (int64_t p = 0; p < pairs; ++p)
            for (int64_t i = 0; i < n; i += few)
                isa().dot_few(w.type(), w.group(first + p, 0, 0), groups, x.at(0, t + i), x.n_rows,
                              std::min(few, n - i), acc + (p * n + i) * kStripRows);
        return;
    }
    for (int64_t g = 0; g < groups; g += kNearGroups)
        for (int64_t p = 0; p < pairs; ++p) {
            const uint8_t* next = p + 1 < pairs              ? w.group(first + p + 1, g, 0)
                                  : g + kNearGroups < groups ? w.group(first, g + kNearGroups, 0)
                                                             : w.group(first + pairs, 0, 0);
            multiply_groups(w, first + p, g, std::min(g + kNearGroups, groups), next, x, t, n,
                            acc + p * n * kStripRows);
        }
}

// Group g of rows 32 * pair .. 32 * pair + 32 times n tokens of x, (n, 128).
void multiply_group(const Matrix& w, int64_t pair, int64_t g, const float* x, int64_t n,
                    float* acc) {
    const int64_t k = w.type() == Type::BF16 ? even(w.n_cols()) : w.n_cols();
    const int64_t count = std::min<int64_t>(kGroup, k - g * kGroup);
    const uint8_t* group = w.group(pair, g, 0);
    // F32 is multiplied as it lies: a strip would be a copy. Prompts of 512 on Zen 4, in turns: 79
    // percent of the peak from strips, 85 without.
    if (const int64_t few = isa().few_tokens; w.type() == Type::F32 || are_few(n)) {
        for (int64_t i = 0; i < n; i += few)
            isa().dot_few_floats(w.type(), group, count, x + i * kGroup, std::min(few, n - i),
                                 acc + i * kStripRows);
        return;
    }
    for (int64_t i = 0; i < 2 * w.group_bytes(); i += 64) prefetch_far(group + i);
    alignas(64) float strip[kGroup * kStripRows];
    isa().unpack_floats(w.type(), group, count, strip);
    isa().dot_floats(strip, count, x, n, acc);
}

void multiply_group(const Matrix& w, int64_t pair, int64_t g, const uint16_t* x, int64_t n,
                    float* acc) {
    const int64_t count = std::min<int64_t>(kGroup, even(w.n_cols()) - g * kGroup);
    isa().dot_pairs(w.group(pair, g, 0), count / 2, x, n, acc);
}

// Inputs of `all` tokens, in groups.
template <class T>
struct Laid {
    const T* groups;
    int64_t all;
    const T* at(int64_t g, int64_t t) const { return groups + (g * all + t) * kGroup; }
};

template <class T>
void multiply(const Matrix& w, int64_t first, int64_t pairs, const Laid<T>& x, int64_t t, int64_t n,
              float* acc) {
    const int64_t groups = w.n_groups(), near = are_few(n) ? groups : kNearFloatGroups;
    for (int64_t begin = 0; begin < groups; begin += near)
        for (int64_t p = 0; p < pairs; ++p)
            for (int64_t g = begin; g < std::min(begin + near, groups); ++g)
                multiply_group(w, first + p, g, x.at(g, t), n, acc + p * n * kStripRows);
}

const float* from(const float* numbers, int64_t i) { return numbers ? numbers + i : nullptr; }

// What is done with the sums of a product.
struct Finish {
    const float* units;
    const float* bias;
    Activation activation;
    const float* residual;
    float* floats;
    const Matrix* reader;  // which takes them rounded; or null
    Quantized rounded;
};

// Tokens t .. t + n of outputs 32 * first .. 32 * (first + pairs), to floats.
void write(const Matrix& w, int64_t first, int64_t pairs, int64_t t, int64_t n, const float* acc,
           const Finish& to) {
    const int64_t m = w.n_rows();
    for (int64_t i = 0; i < n; i += kFinished)
        for (int64_t p = 0; p < pairs; ++p) {
            const int64_t row = (first + p) * kStripRows, at = (t + i) * m + row;
            isa().finish(acc + (p * n + i) * kStripRows, std::min(kFinished, n - i),
                         static_cast<int>(std::min<int64_t>(kStripRows, m - row)),
                         from(to.units, row), from(to.bias, row), to.activation,
                         from(to.residual, at), to.floats + at, m);
        }
}

// The same, rounded for the next product: of each four pairs of these outputs one group is made.
void write_rounded(const Matrix& w, int64_t first, int64_t pairs, int64_t t, int64_t n,
                   const float* acc, const Finish& to) {
    const Coding code = coding(to.reader->type(), isa().signed_bytes);
    alignas(64) float rows[kFinished][kGroup];
    for (const int64_t end = first + pairs; first < end; first += kPairs) {
        const int64_t row = first * kStripRows, valid = std::min<int64_t>(kGroup, w.n_rows() - row);
        for (int64_t i = 0; i < n; i += kFinished) {
            const int64_t count = std::min(kFinished, n - i);
            for (int64_t at = 0; at < valid; at += kStripRows)
                isa().finish(acc + at * n + i * kStripRows, count,
                             static_cast<int>(std::min<int64_t>(kStripRows, valid - at)),
                             from(to.units, row + at), from(to.bias, row + at), to.activation,
                             nullptr, rows[0] + at, kGroup);
            for (int64_t j = 0; j < count; ++j)
                isa().quantize_row(rows[j], valid, code, to.rounded.at(first / kPairs, t + i + j),
                                   0);
        }
        acc += kGroup * n;
    }
}

// Pairs of panels whose results are written together. While results of one token are written, no
// weights are read, and the processor no longer runs ahead of what it waits for: so it is done
// once. Q4_0, beside a thread that only reads: 0.97 with four pairs at once, 1.01 with 32, 1.04
// with all.
int64_t pairs_at_once(int64_t n) { return are_few(n) ? kSums / (n * kGroup) * kPairs : kPairs; }

void write_sums(const Matrix& w, int64_t first, int64_t pairs, int64_t t, int64_t n,
                const float* acc, const Finish& to) {
    (to.reader ? write_rounded : write)(w, first, pairs, t, n, acc, to);
}

// Few tokens: a piece is some pairs of panels. Sums of pieces that follow each other wait for
// `write` together.
template <class X>
void multiply_few(Pieces& pieces, const Matrix& w, const X& x, int64_t n, const Finish& to) {
    alignas(64) float acc[kSums];
    const int64_t room = pairs_at_once(n), sums = n * kStripRows;
    int64_t first = 0, last = 0;  // pairs whose sums are there
    for (const auto [begin, end] : pieces) {
        if (begin != last || end - first > room) {
            write_sums(w, first, last - first, 0, n, acc, to);
            first = begin;
        }
        float* here = acc + (begin - first) * sums;
        std::memset(here, 0, static_cast<size_t>((end - begin) * sums) * sizeof(float));
        multiply(w, begin, end - begin, x, 0, n, here);
        last = end;
    }
    write_sums(w, first, last - first, 0, n, acc, to);
}

// Many tokens: a piece is `pairs` pairs of panels for a block of tokens.
template <class X>
void multiply_many(Pieces& pieces, const Matrix& w, const X& x, int64_t n, int64_t pairs,
                   const Finish& to) {
    alignas(64) float acc[kSums];
    const int64_t all = divide_up(w.n_rows(), kStripRows), strides = divide_up(all, pairs);
    for (const auto [unit, end] : pieces) {
        const int64_t t = unit / strides * kTokenBlock, first = unit % strides * pairs;
        const int64_t count = std::min(kTokenBlock, n - t), here = std::min(pairs, all - first);
        std::memset(acc, 0, static_cast<size_t>(here * count * kStripRows) * sizeof(float));
        multiply(w, first, here, x, t, count, acc);
        write_sums(w, first, here, t, count, acc, to);
    }
}

template <class X>
void multiply_pieces(Pieces& pieces, const Matrix& w, const X& x, int64_t n, int64_t pairs,
                     const Finish& to) {
    if (are_few(n))
        multiply_few(pieces, w, x, n, to);
    else
        multiply_many(pieces, w, x, n, pairs, to);
}

void multiply_prepared(Pieces& pieces, const Matrix& w, const Prepared& x, int64_t n, int64_t pairs,
                       const Finish& to) {
    if (x.pairs)
        multiply_pieces(pieces, w, Laid<uint16_t>{x.pairs, n}, n, pairs, to);
    else if (x.floats)
        multiply_pieces(pieces, w, Laid<float>{x.floats, n}, n, pairs, to);
    else
        multiply_pieces(pieces, w, x.rounded, n, pairs, to);
}

// Pairs of panels in a piece: eight pieces for each thread, so that both are done at once, but no
// larger ones, and no smaller ones where the next product takes its inputs rounded: each four pairs
// make a group of them.
int64_t pairs_a_piece(int64_t pairs, int64_t n, bool is_rounded, int n_threads) {
    if (is_rounded) return kPairs;
    const int64_t blocks = are_few(n) ? 1 : divide_up(n, kTokenBlock);
    return std::clamp<int64_t>(pairs * blocks / (8 * n_threads), 1, kPairs);
}

}  // namespace

size_t rounded_bytes(const Matrix& w, int64_t n) {
    return is_float(w.type()) ? 0 : static_cast<size_t>(n * w.n_groups()) * sizeof(Rounded);
}

size_t linear_scratch(const Matrix& w, const Input& x, int64_t n) {
    if (x.rounded) return 0;
    Cutter cutter(nullptr);
    cut_prepared(cutter, w, n);
    return cutter.used();
}

// Threads split the rows, so each weight is read and unpacked by one of them only, but for the
// blocks of tokens of a long prompt.
void linear(Schedule& schedule, const Matrix& w, const Input& x, int64_t n, const float* bias,
            Activation activation, const float* residual, const Output& y, uint8_t* shared) {
    if (n == 0) return;
    const Finish to{w.units(), bias, activation, residual, y.floats, y.reader, {y.rounded, n}};
    const int64_t all = divide_up(w.n_rows(), kStripRows);
    const int64_t pairs = pairs_a_piece(all, n, y.reader, schedule.n_threads());
    const bool few = are_few(n);
    const int64_t n_units = few ? all : divide_up(all, pairs) * divide_up(n, kTokenBlock);
    const int64_t grain = few ? pairs : 1;
    // More tokens wait for multipliers, not for memory.
    constexpr int64_t kWaitForMemory = 4;
    const uint8_t* weights = n <= kWaitForMemory ? w.group(0, 0, 0) : nullptr;
    const int64_t stride = pairs * w.n_groups() * 2 * w.group_bytes();
    if (!x.rounded && n < kAlone)
        return schedule.add(
            n_units, grain,
            [=, &w](Pieces& pieces) {
                multiply_prepared(pieces, w, prepare_alone(w, x, n), n, pairs, to);
            },
            weights, stride);
    Prepared inputs{nullptr, nullptr, {const_cast<Rounded*>(x.rounded), n}};
    if (!x.rounded) {
        Cutter cutter(shared);
        inputs = cut_prepared(cutter, w, n);
        schedule.add(n, [=, &w](Pieces& pieces) {
            for (const auto rows : pieces) prepare_rows(w, x, n, rows, inputs);
        });
    }
    schedule.add(
        n_units, grain,
        [=, &w](Pieces& pieces) { multiply_prepared(pieces, w, inputs, n, pairs, to); }, weights,
        stride);
}

// ---- rows of weights ----

namespace {

// Group g of row `row`: up to 128 floats.
void embed_group(const Matrix& w, int64_t row, int64_t g, int64_t count, float* y) {
    if (is_float(w.type())) {
        alignas(64) float strip[kGroup * kStripRows];
        const bool pairs = w.type() == Type::BF16;
        isa().unpack_floats(w.type(), w.group(row / kStripRows, g, 0), pairs ? even(count) : count,
                            strip);
        for (int64_t i = 0; i < count; ++i)
            y[i] = strip[(pairs ? i ^ 1 : i) * kStripRows + row % kStripRows];
        return;
    }
    const int lane = static_cast<int>(row % kRows);
    const uint8_t* group = w.group(row / kStripRows, g, static_cast<int>(row / kRows % 2));
    Strip strip;
    isa().unpack(w.type(), group, 0, strip);
    dispatch(w.type(), [&](auto, auto p) {
        using P = typename decltype(p)::type;
        const bool is_signed = isa().signed_bytes && (P::Bits == 8 || P::Codebook);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t sub = i * P::Subs / kGroup;
            if constexpr (P::Whole) {
                const int64_t step = sub / 2 * P::Steps + i / 4 % P::Steps;
                const int64_t at = 64 * pair_half(lane) + 4 * (pair_lane(lane) + sub % 2);
                const auto word = [&](const int32_t (&pairs)[4][kStripRows]) {
                    const int32_t pair = pairs[sub / 2][lane];
                    return sub % 2 ? pair >> 16 : static_cast<int16_t>(pair);
                };
                const int value = strip.code[2 * step][at + i % 4] - P::Middle;
                const int sum =
                    word(strip.whole_scale) * value + (P::Min ? word(strip.whole_min) : 0);
                y[i] = static_cast<float>(sum) * w.units()[row];
            } else {
                const uint8_t code = strip.code[i / 4][4 * lane + i % 4];
                const int value = is_signed ? static_cast<int8_t>(code) : code - P::Zero;
                y[i] = strip.scale[sub][lane] * static_cast<float>(value);
                if constexpr (P::Min) y[i] += strip.min[sub][lane];
            }
        }
    });
}

}  // namespace

void embed(Schedule& schedule, const Matrix& w, const int32_t* ids, int64_t n,
           const float* positions, const int32_t* places, float* y) {
    schedule.add(n, [=, &w](Pieces& pieces) {
        const int64_t k = w.n_cols();
        for (const auto [begin, end] : pieces)
            for (int64_t t = begin; t < end; ++t) {
                float* row = y + t * k;
                for (int64_t i = 0; i < k; i += kGroup)
                    embed_group(w, ids[t], i / kGroup, std::min<int64_t>(kGroup, k - i), row + i);
                const float* added = positions ? positions + places[t] * k : nullptr;
                for (int64_t i = 0; added && i < k; ++i) row[i] += added[i];
            }
    });
}

void layer_norm(Schedule& schedule, const float* x, const Norm& norm, int64_t n, int64_t k,
                float* y) {
    schedule.add(n, [=](Pieces& pieces) {
        for (const auto [begin, end] : pieces)
            for (int64_t t = begin; t < end; ++t)
                isa().layer_norm(x + t * k, norm.weight, norm.bias, norm.eps, k, y + t * k);
    });
}

}  // namespace starcoder
