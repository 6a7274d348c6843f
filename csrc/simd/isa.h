// The table of inner loops, one per instruction set. Operations call them through `isa()`.
//
// Every table gives the same bits: lanes are rows, keys or dimensions, each lane does the same
// operations in the same order, and sums across lanes go through sixteen partial sums.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels.h"
#include "types/panels.h"

namespace starcoder {

// A group of activations, rounded to 8 bits by `quantize_row`, with what its products need: one
// stretch of memory, and one stream for the tokens of a tile.
struct alignas(64) Rounded {
    int8_t q[kGroup];      // zeros after the last input; for whole scales, four of two subs in turn
    union {                // of each sub,
        int32_t start[8];  // what its dot product starts from: -zero * sum(q);
        float sum[8];      // for weights with minima: sum(q)
    };
    int32_t pair_sum[4];  // for whole scales, of each two subs: both sum(q), in words
    float scale;
};

// Two numbers of 16 bits in one of 32.
inline int32_t words(int32_t high, int32_t low) {
    return static_cast<int32_t>(static_cast<uint32_t>(high) << 16 |
                                (static_cast<uint32_t>(low) & 0xffff));
}

// What the rounding of activations needs to know of a quantized type of weights.
struct Coding {
    int zero, subs;  // the code that stands for 0; scales in a group
    bool min;        // with minima
    bool whole;      // scales are multiplied as whole numbers
};

// Groups of them, (n_groups, n_rows): a row after the other they would lie 2^n bytes apart, and
// the rows of a tile in one set of cache lines. See docs/log.md.
struct Quantized {
    Rounded* groups;
    int64_t n_rows;
    Rounded* at(int64_t g, int64_t row) const { return groups + g * n_rows + row; }
};

// Multiply-adds that were done, and the sum of their products.
struct Products {
    int64_t count;
    double sum;
};

inline constexpr int kPeakBytes = 1024;  // of operands: four rounds' of the widest tile

// Whether the processor itself fetches weights ahead, if their lines are loaded in the order in
// which they lie. Zen 4 does, and requests only disturb it: one thread with Q4_0 reads 0.99 of what
// it can without, 0.91 with them, with Q8_0 1.01 and 0.87. A Xeon, 2026-11-22: 0.75 and 0.9. See
// docs/log.md.
extern const bool follows_streams;

// Up to so many tokens: with more work between two lines it sees too little of the stream. BF16
// and F32 have fewer instructions a line.
inline constexpr int kFollowed = 2, kFollowedFloats = 4;

// Asks for a line, and stays where it is written: compilers move other requests together, over
// loads and fences.
inline void prefetch_here(const uint8_t* line) {
#if defined(__x86_64__)
    asm volatile("prefetcht0 %0" : : "m"(*line) : "memory");
#else
    __builtin_prefetch(line);
#endif
}

// How far ahead others are asked for weights, in bytes. One or two tokens take them as fast as they
// come, from the first cache.
inline constexpr int64_t kAhead = 4096;
inline void prefetch_near(const uint8_t* line) { prefetch_here(line + kAhead); }

// What is multiplied more slowly, by more tokens or as floats, is asked for into the second cache,
// where more requests may be under way. F16, two threads on Zen 4, in turns: 9.1 tokens/s in bursts
// of a group into the first, 12.9 line by line into the second. Q4_0 times 3, 4, 6 and 8 tokens:
// 0.89, 0.93, 0.66 and 0.70 of reading from the first, 0.94, 0.97, 0.90 and 0.74 from the second.
inline constexpr int64_t kFarAhead = 16384;
inline void prefetch_far(const uint8_t* line) { __builtin_prefetch(line + kFarAhead, 0, 2); }

// Blocks of the key/value cache that are needed next, asked for while others are multiplied: a line
// or two at each step of a tile, so that memory is busy all the time and never overrun.
class Ahead {
  public:
    explicit Ahead(int64_t block_len) : block_len_(block_len) {}

    int64_t n_blocks() const { return n_; }
    void add(const uint16_t* block) {
        if (n_ < kMost) blocks_[n_++] = block;
    }
    // How many lines a step asks for.
    void set_rate(int64_t lines) { rate_ = lines; }

    void step() {
        for (int64_t i = 0; i < rate_ && next_ < n_; ++i) {
            __builtin_prefetch(blocks_[next_] + at_, 0, 2);
            at_ += 32;
            if (at_ < block_len_) continue;
            at_ = 0;
            ++next_;
        }
    }

  private:
    static constexpr int64_t kMost = 64;  // two parts of a context: attention.cpp
    const uint16_t* blocks_[kMost];
    int64_t block_len_, n_ = 0, next_ = 0, at_ = 0, rate_ = 1;
};

struct Isa {
    const char* name;

    // Codes of 8 bits are multiplied as signed numbers: they need no zero point.
    bool signed_bytes;

    // Up to this many tokens `dot_few` and `dot_few_floats` multiply at a time.
    int few_tokens;

    // x (k) -> groups of out, `stride` from one to the next, for weights coded like this.
    void (*quantize_row)(const float* x, int64_t k, Coding coding, Rounded* out, int64_t stride);

    // Half (0 or 1) of a strip = one group of a panel of this type.
    void (*unpack)(Type type, const uint8_t* group, int half, Strip& strip);
    // Strip (k, 32) = k inputs of a group of floats. Of BF16 k is even, and of each pair the second
    // input stands first: see `dot_pairs`.
    void (*unpack_floats)(Type type, const uint8_t* group, int64_t k, float* strip);

    // acc (n, 32) += the strips' rows times n rows of x, whose groups lie `stride` apart.
    void (*dot)(Type type, const Strip* strips, int64_t n_strips, const Rounded* x, int64_t stride,
                int64_t n, float* acc);
    // acc (n, 32) += the pair of panels at `groups` times n rows of x, whose groups lie `stride`
    // apart, for n <= few_tokens: no strip in between.
    void (*dot_few)(Type type, const uint8_t* groups, int64_t n_groups, const Rounded* x,
                    int64_t stride, int64_t n, float* acc);
    // acc (n, 32) += strip (k, 32) times the first k <= 128 of x (n, 128).
    void (*dot_floats)(const float* strip, int64_t k, const float* x, int64_t n, float* acc);
    // The same from k inputs of a group of floats, for n <= few_tokens.
    void (*dot_few_floats)(Type type, const uint8_t* group, int64_t k, const float* x, int64_t n,
                           float* acc);

    // to (k) = x (k), rounded to nearest even; what is smaller than 2^-126 becomes 0, or -0.
    void (*round_bf16)(const float* x, int64_t k, uint16_t* to);
    // acc (n, 32) += `n_pairs` pairs of inputs of a group times the first of x (n, 128), all
    // bf16. Null where the machine has no such product; then the same bits come from `dot_floats`,
    // if of each pair the second input stands first.
    void (*dot_pairs)(const uint8_t* group, int64_t n_pairs, const uint16_t* x, int64_t n,
                      float* acc);

    // y (n, valid) = activation(acc (n, 32) * units + bias) + residual; rows of y, residual:
    // `stride`. Units, bias and residual may be null.
    void (*finish)(const float* acc, int64_t n, int valid, const float* units, const float* bias,
                   Activation activation, const float* residual, float* y, int64_t stride);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t k,
                       float* y);

    // to (k) = from (k), rounded to nearest even.
    void (*narrow)(const float* from, int64_t k, half* to);
    // scores (h, stride), 16 columns a block = queries (h, d) times blocks of keys (d, 16).
    void (*scores)(const float* queries, int64_t h, int64_t d, const float* keys, int64_t n_blocks,
                   float* scores, int64_t stride);
    // x (n) = exp(x - max(x)) in place; n a multiple of 16, only the first `valid` count, the rest
    // become 0. Returns the maximum and the sum.
    void (*softmax)(float* x, int64_t n, int64_t valid, float* max, float* sum);
    // acc (h, d) += weights (h, stride), `valid` columns, times values (valid, d).
    void (*mix)(const float* weights, int64_t stride, int64_t valid, int64_t h, int64_t d,
                const float* values, float* acc);
    // The same three with bf16. Queries and weights are first rounded to pairs: x (n) in place.
    void (*round_pairs)(float* x, int64_t n);
    // scores (h, 16 n_blocks) = queries (h, d) in pairs times n_blocks <= 2 blocks of keys
    // (d / 2, 16, 2); `room` is for 32 d floats. `ahead`, what may be asked for meanwhile, or null.
    void (*score_pairs)(const float* queries, int64_t h, int64_t d, const uint16_t* const* keys,
                        int64_t n_blocks, Ahead* ahead, float* room, float* scores, int64_t stride);
    // acc (h, d) += columns key .. key + valid of weights (h, stride) in pairs, times blocks of
    // values (16 / 2, d, 2); `room` is for 16 d floats a block.
    void (*mix_pairs)(const float* weights, int64_t stride, int64_t key, int64_t valid, int64_t h,
                      int64_t d, const uint16_t* const* values, Ahead* ahead, float* room,
                      float* acc);
    // Merges two parts of n softmaxes: acc (n, d), max (n), sum (n) of one into those of the other.
    void (*merge)(float* acc, float* max, float* sum, const float* acc2, const float* max2,
                  const float* sum2, int64_t n, int64_t d);

    // x (n) -> blocks of this type, n in whole blocks; see `requantize`.
    void (*encode)(Type type, const float* x, int64_t n, bool fused, void* out);
    // out (n) = x (n)
    void (*widen_half)(const half* x, int64_t n, float* out);

    // What the machine can do at best: as many independent sums as hide the latency of products, of
    // `rounds` products each. Operands are kPeakBytes long. Codes are of 4 bits. See limits.cpp.
    Products (*int8_peak)(const uint8_t* codes, const int8_t* x, int64_t rounds);
    Products (*bf16_peak)(const uint16_t* w, const uint16_t* x, int64_t rounds);  // or null
    Products (*f32_peak)(const float* w, const float* x, int64_t rounds);
    // line (64 bytes) |= each line at `data`.
    void (*read_lines)(const uint8_t* data, int64_t n_lines, uint8_t* line);
};

const Isa& isa();                              // the one in use
std::span<const Isa* const> available_isas();  // best first; the last is scalar
bool use_isa(std::string_view name);           // false: no such table on this machine

}  // namespace starcoder
