// One pool of threads for the whole process; nothing else knows how they are started.
//
// Our own rather than OpenMP's: no runtime to ship, the same on macOS, it survives fork(), and it
// sleeps when idle, so that a waiting server leaves the machine to others.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace starcoder {

void set_n_threads(int n);  // 1 or more; takes effect with the next call
int n_threads();

// What the threads of one call share.
struct Meeting {
    explicit Meeting(int n) : size(static_cast<uint32_t>(n)) {}
    const uint32_t size;
    alignas(64) std::atomic<uint32_t> arrived{0};
    alignas(64) std::atomic<uint32_t> round{0};
    alignas(64) std::atomic<int64_t> next[2] = {0, 0};  // pieces taken; `pieces` uses them in turn
};

// One of the threads that run a function together.
class Team {
  public:
    Team(Meeting& meeting, int index) : meeting_(meeting), index_(index) {}

    int index() const { return index_; }
    int size() const { return static_cast<int>(meeting_.size); }

    // Waits until all threads are here. What they wrote before, all of them read after.
    void barrier();

    // This thread's part of 0 .. n: contiguous, and the same whenever it is asked for.
    struct Range {
        int64_t begin, end;
    };
    Range share(int64_t n) const {
        const int64_t i = index_, all = size();
        return {n * i / all, n * (i + 1) / all};
    }

    // A function that gives 0, grain, 2 grain and so on to whichever thread calls it next: for work
    // of uneven cost. All threads ask for it, with a barrier between one and the next.
    auto pieces(int64_t grain) {
        std::atomic<int64_t>& next = meeting_.next[turn_];
        turn_ ^= 1;
        meeting_.next[turn_].store(0, std::memory_order_relaxed);
        return [&next, grain] { return next.fetch_add(grain, std::memory_order_relaxed); };
    }

  private:
    Meeting& meeting_;
    const int index_;
    int turn_ = 0;
};

// Runs f on n threads; returns when all have.
void together(int n, const std::function<void(Team&)>& f);

// Calls f(begin, end) on disjoint ranges that cover 0 .. n, in pieces of `grain`.
void parallel_pieces(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

}  // namespace starcoder
