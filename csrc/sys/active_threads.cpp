#include "sys/active_threads.h"

#include <algorithm>
#include <utility>

#include "sys/threads.h"

#if defined(__linux__)
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace starcoder {

namespace {

constexpr double kLook = 3e-3;  // seconds from one look to the next, for each thread

// Of the time, all threads together: beside a busy process of the same priority one thread waits
// half of it, beside one of the lowest a fiftieth.
constexpr double kBearable = 0.25, kOneThread = 0.5;

// Seconds beyond that: more than once that another program gets a turn; for a thread that is tried
// again, less than once.
constexpr double kMostDebt = 6e-3, kTrialDebt = 1e-3;

// A thread sleeps for so long, twice as long each time it is tried in vain.
constexpr double kFirstRest = 0.1, kLongestRest = 2;

Clock::duration duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

#if defined(__linux__)
int cpu_clock() {
    clockid_t clock;
    return pthread_getcpuclockid(pthread_self(), &clock) == 0 ? clock : 0;
}

double cpu_seconds(int clock) {
    timespec time;
    if (clock_gettime(clock, &time) != 0) return 0;
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

int thread_id() { return static_cast<int>(syscall(SYS_gettid)); }

// "time on the processor, time in the queue, number of turns", in nanoseconds. Opened anew each
// time, in 5 microseconds: a file that is kept open is closed by programs that close all they have
// inherited.
double queue_seconds(int thread_id) {
    char text[64];
    snprintf(text, sizeof(text), "/proc/self/task/%d/schedstat", thread_id);
    const int file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    const ssize_t n = read(file, text, sizeof(text) - 1);
    close(file);
    if (n <= 0) return 0;
    text[n] = 0;
    char* end;
    strtoull(text, &end, 10);
    return 1e-9 * static_cast<double>(strtoull(end, nullptr, 10));
}
#else
int cpu_clock() { return 0; }
double cpu_seconds(int) { return 0; }
int thread_id() { return 0; }
double queue_seconds(int) { return 0; }
#endif

ActiveThreads::ActiveThreads(int n_threads)
    : size_(n_threads),
      states_(std::make_unique<ThreadState[]>(static_cast<size_t>(n_threads))),
      n_active_(n_threads),
      awake_(n_threads),
      looked_(Clock::now()),
      wakes_at_(looked_),
      woke_(looked_),
      waited_(static_cast<size_t>(n_threads)),
      ran_(waited_.size() * waited_.size()) {}

void ActiveThreads::shrink(int n_threads) { n_active_ = awake_ = size_ = n_threads; }

void ActiveThreads::enter() {
    state(0).clock = cpu_clock();
    const int id = thread_id();
    if (state(0).id.exchange(id) != id) waited_[0] = queue_seconds(id);
}

void ActiveThreads::look() {
    const auto now = Clock::now();
    const double passed = seconds(now - looked_);
    if (passed < kLook * size_) return;
    looked_ = now;
    double waited = 0;
    for (int i = 0; i < size_; ++i)
        if (const int id = state(i).id) {
            double& before = waited_[static_cast<size_t>(i)];
            const double all = queue_seconds(id), more = all - std::exchange(before, all);
            if (i < n_active()) waited += more;
        }
    debt_ = std::max(0.0, debt_ + waited - kBearable * passed);
    const int n = n_active();
    const bool on_trial = seconds(now - woke_) < rest_;
    if (n > 1 && debt_ > (on_trial ? kTrialDebt : kMostDebt)) {
        rest_ = on_trial ? std::min(2 * rest_, kLongestRest) : kFirstRest;
        const int too_many = static_cast<int>(waited / passed / kOneThread + 0.5);
        n_active_ = std::max(1, n - std::max(1, too_many));
        awake_ = n_active();
        wakes_at_ = now + duration(rest_);
        debt_ = 0;
    } else if (n < size_ && now >= wakes_at_) {
        n_active_ = n + 1;
        woke_ = now;
        wakes_at_ = now + duration(std::max(rest_, kFirstRest));
        debt_ = 0;
    }
}

Watch::Watch(ActiveThreads& active, int thread)
    : active_(active),
      thread_(thread),
      last_(Clock::now()),
      ran_(active.ran_.data() + static_cast<size_t>(thread) * active.waited_.size()) {
    is_held_up();
}

bool Watch::is_held_up() {
    const auto now = Clock::now();
    const double passed = seconds(now - std::exchange(last_, now));
    bool found = false;
    for (int i = 0; i < active_.size(); ++i) {
        const ThreadState& state = active_.state(i);
        if (i == thread_ || state.clock == 0) continue;
        const double ran = cpu_seconds(state.clock);
        const double before = std::exchange(ran_[i], ran);
        if (state.holds && before > 0 && ran - before < passed / 2) found = true;
    }
    return found;
}

}  // namespace starcoder
