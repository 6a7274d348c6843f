#include "active_threads.h"

#include <algorithm>
#include <utility>

#include "threads.h"

#if defined(__linux__)
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#endif

namespace starcoder {

namespace {

constexpr double kLook = 5e-3;  // seconds from one look to the next

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

QueueTime::QueueTime() : file_(open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)) {}

QueueTime::~QueueTime() {
    if (file_ >= 0) close(file_);
}

// "time on the processor, time in the queue, number of turns", in nanoseconds.
double QueueTime::seconds() const {
    char text[64];
    const ssize_t n = file_ < 0 ? -1 : pread(file_, text, sizeof(text) - 1, 0);
    if (n <= 0) return 0;
    text[n] = 0;
    char* end;
    strtoull(text, &end, 10);
    return 1e-9 * static_cast<double>(strtoull(end, nullptr, 10));
}
#else
int cpu_clock() { return 0; }
double cpu_seconds(int) { return 0; }
QueueTime::QueueTime() {}
QueueTime::~QueueTime() {}
double QueueTime::seconds() const { return 0; }
#endif

QueueTime& QueueTime::of_this_thread() {
    thread_local std::unique_ptr<QueueTime> mine;
    thread_local uint32_t forks = 0;
    if (!mine || forks != fork_count()) {
        mine = std::make_unique<QueueTime>();
        forks = fork_count();
    }
    return *mine;
}

ActiveThreads::ActiveThreads(int n_threads)
    : size_(n_threads),
      states_(std::make_unique<ThreadState[]>(static_cast<size_t>(n_threads))),
      n_active_(n_threads),
      awake_(n_threads),
      looked_(Clock::now()),
      wakes_at_(looked_),
      woke_(looked_),
      waited_(static_cast<size_t>(n_threads)) {}

void ActiveThreads::shrink(int n_threads) { n_active_ = awake_ = size_ = n_threads; }

void ActiveThreads::enter() {
    state(0).clock = cpu_clock();
    const QueueTime& mine = QueueTime::of_this_thread();
    if (state(0).queue.exchange(&mine) != &mine) waited_[0] = mine.seconds();
}

void ActiveThreads::look() {
    const auto now = Clock::now();
    const double passed = seconds(now - looked_);
    if (passed < kLook) return;
    looked_ = now;
    double waited = 0;
    for (int i = 0; i < size_; ++i)
        if (const QueueTime* queue = state(i).queue) {
            double& before = waited_[static_cast<size_t>(i)];
            const double all = queue->seconds(), more = all - std::exchange(before, all);
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
      ran_(static_cast<size_t>(active.size())) {
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
        const double before = std::exchange(ran_[static_cast<size_t>(i)], ran);
        if (state.holds && before > 0 && ran - before < passed / 2) found = true;
    }
    return found;
}

}  // namespace starcoder
