// Software prefetch: when it helps, how far ahead, and into which cache.
#pragma once

#include <cstdint>

namespace starcoder {

// Whether this processor's own prefetcher follows a stream of weights better than requests do.
// Software prefetch hurts on Zen 4 and helps on Sapphire Rapids. Share of plain read bandwidth, one
// thread, without / with prefetch: Zen 4 Q4_0 0.99 / 0.91, Q8_0 1.01 / 0.87; Xeon 0.75 / 0.90.
extern const bool hardware_follows_streams;

// Up to so many tokens: with more work between two lines the hardware sees too little of the
// stream. BF16 and F32 have fewer instructions a line.
inline constexpr int kStreamTokens = 2, kStreamTokensFloats = 4;

// Prefetches a line, and stays where it is written: compilers move other requests together, over
// loads and fences.
inline void prefetch_here(const uint8_t* line) {
#if defined(__x86_64__)
    asm volatile("prefetcht0 %0" : : "m"(*line) : "memory");
#else
    __builtin_prefetch(line);
#endif
}

// One or two tokens take weights as fast as they come: they are prefetched into the first cache.
inline constexpr int64_t kNearBytes = 4096;
inline void prefetch_near(const uint8_t* line) { prefetch_here(line + kNearBytes); }

// What is multiplied more slowly, by more tokens or as floats, is prefetched into the second cache,
// where more requests may be under way. F16, two threads on Zen 4: 9.1 tokens/s in bursts of a
// group into the first cache, 12.9 line by line into the second. Q4_0 times 3, 4, 6 and 8 tokens,
// share of read bandwidth: 0.89, 0.93, 0.66, 0.70 from the first; 0.94, 0.97, 0.90, 0.74 from the
// second.
inline constexpr int64_t kFarBytes = 16384;
inline void prefetch_far(const uint8_t* line) { __builtin_prefetch(line + kFarBytes, 0, 2); }

// Prefetches memory that will be unpacked soon. The hardware sees streams too, but stops at every
// page; without this, unpacking waits for memory and multiplying leaves it idle.
inline void prefetch(const uint8_t* data, int64_t nbytes) {
    for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(data + i);
}

// Prefetches blocks of the key/value cache while others are multiplied: a line or two at each step
// of a tile, so that memory is busy all the time and never overrun.
class Prefetcher {
  public:
    explicit Prefetcher(int64_t block_len) : block_len_(block_len) {}

    int64_t n_blocks() const { return n_; }
    void add(const uint16_t* block) {
        if (n_ < kMost) blocks_[n_++] = block;
    }
    void set_rate(int64_t lines) { rate_ = lines; }  // that a step prefetches

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
    static constexpr int64_t kMost = 64;  // two parts of a context: ops/attention.cpp
    const uint16_t* blocks_[kMost];
    int64_t block_len_, n_ = 0, next_ = 0, at_ = 0, rate_ = 1;
};

}  // namespace starcoder
