// How many threads take part, on a machine that others use too.
//
// The system lets a thread wait while others run on its processor, for 3 ms and more: a hundred
// times as long as a piece of work takes. Whoever needs the piece waits with it. Where threads wait
// more than they bring, some are sent to sleep, and tried again a while later.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "clock.h"

namespace starcoder {

class Run;

// How long a thread has run, and how long it was kept from running, as the system counts it.
// Linux tells; elsewhere both are 0.
class ThreadClock {
  public:
    ThreadClock();  // of the calling thread
    ~ThreadClock();
    ThreadClock(const ThreadClock&) = delete;
    ThreadClock& operator=(const ThreadClock&) = delete;

    double ran() const;     // seconds
    double waited() const;  // seconds, up to when it last began to run

    static ThreadClock& of_this_thread();

  private:
    int clock_ = 0, file_ = -1;
};

// What a thread of the pool lets others see.
struct alignas(64) Member {
    std::atomic<const Run*> inside{nullptr};  // the call that it may read
    std::atomic<bool> holds{false};           // pieces
    std::atomic<const ThreadClock*> clock{nullptr};
};

class Crowd {
  public:
    explicit Crowd(int n_threads);
    void shrink(int n_threads);  // to those that could be started

    Member& member(int thread) { return members_[static_cast<size_t>(thread)]; }
    int size() const { return size_; }

    // Threads that should take part now.
    int taking_part() const { return taking_part_.load(std::memory_order_relaxed); }
    // Looks, now and then, at how long threads have waited, and changes that number. For thread 0.
    void look();
    // Forgets how long thread 0, which is another one in each call, waited before.
    void enter(const ThreadClock& first);

    // Whether a call of so many threads needs some that sleep. After it those that take no part do.
    bool wakes(int n_threads) {
        return awake_.exchange(std::min(n_threads, taking_part())) < n_threads;
    }

  private:

    int size_;
    std::unique_ptr<Member[]> members_;
    std::atomic<int> taking_part_, awake_;
    Clock::time_point looked_, wakes_at_, woke_;
    std::vector<double> waited_;  // by each, when last looked at
    double rest_ = 0;             // seconds that the last thread sleeps
};

// One thread's look at the others, while it waits for them.
class Watch {
  public:
    Watch(Crowd& crowd, int thread);
    // Whether a thread with pieces was kept from running since the last look.
    bool is_held_up();

  private:
    Crowd& crowd_;
    const int thread_;
    Clock::time_point last_;
    std::vector<double> ran_;
};

}  // namespace starcoder
