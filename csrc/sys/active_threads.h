// How many threads take part, on a machine that others use too.
//
// The system lets a thread wait while others run on its processor, for 3 ms and more: a thousand
// times as long as a piece of one token takes. All others wait for the piece. Where threads
// wait more than they bring, some are sent to sleep, and tried again a while later.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "sys/clock.h"

namespace starcoder {

class Run;

// A clock of the time that the calling thread runs, which others may ask too; and that time in
// seconds: 0 where the thread has ended, or the system has no such clock (only Linux has).
int cpu_clock();
double cpu_seconds(int clock);

// The calling thread, by the system's number; and how long a thread of this process has waited in
// the queue of a processor, in seconds, up to when it last began to run: 0 where the system does
// not count it (only Linux does).
int thread_id();
double queue_seconds(int thread_id);

// What a thread of the pool lets others see.
struct alignas(64) ThreadState {
    std::atomic<const Run*> inside{nullptr};  // the call that it may read
    std::atomic<bool> holds{false};           // pieces
    std::atomic<int> clock{0};                // cpu_clock(); 0: not started yet
    std::atomic<int> id{0};                   // thread_id()
};

class ActiveThreads {
  public:
    explicit ActiveThreads(int n_threads);
    void shrink(int n_threads);  // to those that could be started

    ThreadState& state(int thread) { return states_[static_cast<size_t>(thread)]; }
    int size() const { return size_; }

    // Threads that should take part now.
    int n_active() const { return n_active_.load(std::memory_order_relaxed); }
    // Looks, now and then, at how long threads have waited, and changes that number. For thread 0,
    // during a call.
    void look();
    // The calling thread, perhaps another one than in the last call, is thread 0 from now on.
    void enter();

    // Notes that a call of so many threads begins. True: some of them sleep and must be woken. The
    // others fall asleep after it.
    bool wakes(int n_threads) {
        return awake_.exchange(std::min(n_threads, n_active())) < n_threads;
    }

  private:
    friend class Watch;

    int size_;
    std::unique_ptr<ThreadState[]> states_;
    std::atomic<int> n_active_, awake_;
    Clock::time_point looked_, wakes_at_, woke_;
    std::vector<double> waited_;  // by each, when last looked at
    std::vector<double> ran_;     // (n, n): by each, as each has seen it in its `Watch`
    double debt_ = 0;             // seconds that threads waited beyond what is bearable
    double rest_ = 0;             // seconds that threads sleep, when last sent to
};

// One thread's look at the others, while it waits for them.
class Watch {
  public:
    Watch(ActiveThreads& active, int thread);
    // Whether a thread with pieces was kept from running since the last look.
    bool is_held_up();

  private:
    ActiveThreads& active_;
    const int thread_;
    Clock::time_point last_;
    double* ran_;  // (n)
};

}  // namespace starcoder
