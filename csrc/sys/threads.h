// One pool of threads for the whole process.
//
// Our own rather than OpenMP's: no runtime to ship, the same on macOS, it survives fork(), and it
// sleeps when idle, so that a waiting server leaves the machine to others. What threads do together
// is said in schedule.h.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace starcoder {

void set_n_threads(int n);  // 1 or more; takes effect with the next call
int n_threads();

// Starts the threads that were set, and returns how many there are, the caller among them: fewer if
// the system starts no more.
int start_threads();

// What the calling thread does every 50 ms of a long call, between two pieces or while it waits.
// What it throws ends the call. Null: nothing.
void set_poll(void (*check)());
void check_poll();

// How many forks lie between this process and the one that loaded the library. What was locked or
// under way at an earlier count belongs to threads that are not here.
uint32_t fork_count();

// A mutex that a forked child finds free, even if a thread of its parent held it.
class Turn {
  public:
    void lock();
    void unlock() { mutex_.unlock(); }

  private:
    std::mutex mutex_;
    std::atomic<uint32_t> forks_{fork_count()};
};

}  // namespace starcoder
