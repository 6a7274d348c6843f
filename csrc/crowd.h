// How many threads take part, on a machine that others use too.
//
// A thread that is put aside with a piece in its hands holds up all others, for as long as the
// system lets somebody else run: 3 ms and more, a hundred times as long as a piece takes. Where
// that costs more than the thread brings, it is sent to sleep, and tried again a while later.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "clock.h"

#if defined(__linux__)
#include <pthread.h>
#include <time.h>
#endif

namespace starcoder {

class Run;

// What a thread of the pool lets others see.
struct alignas(64) Member {
    std::atomic<const Run*> inside{nullptr};  // the call that it may read
    std::atomic<bool> holds{false};           // pieces
    std::atomic<int> clock{0};                // of its CPU time: what `cpu_seconds` takes
};

int cpu_clock();                // of the calling thread
double cpu_seconds(int clock);  // that a thread has run for; 0 where that cannot be told

class Crowd {
  public:
    explicit Crowd(int n_threads);
    void shrink(int n_threads);  // to those that could be started

    Member& member(int thread) { return members_[static_cast<size_t>(thread)]; }
    int size() const { return size_; }

    // Threads that should take part now. `next_call` first tries one that was sent to sleep.
    int taking_part() const { return taking_part_.load(std::memory_order_relaxed); }
    int next_call();

    // Whether a call of so many threads needs some that sleep; they do not from now on.
    bool wakes(int n_threads) { return awake_.exchange(n_threads) < n_threads; }

  private:
    friend class Watch;

    void lost(double seconds);  // to a thread that was put aside with pieces

    int size_;
    std::unique_ptr<Member[]> members_;
    std::atomic<int> taking_part_, awake_;
    std::atomic<bool> watched_{false};

    std::mutex mutex_;
    double credit_;              // seconds that may still be lost
    Clock::time_point credited_;  // until when
    double rest_ = 0;            // seconds that the last thread sleeps
    Clock::time_point rests_until_, tried_;
};

// One thread's look at the others, while it waits for them.
class Watch {
  public:
    Watch(Crowd& crowd, int thread);
    ~Watch();
    void look();

  private:
    Crowd& crowd_;
    const int thread_;
    const bool watches_;  // one thread at a time does
    Clock::time_point last_;
    std::vector<double> ran_;
};

}  // namespace starcoder
