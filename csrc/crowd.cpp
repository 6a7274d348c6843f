#include "crowd.h"

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

// A thread sleeps for so long, twice as long each time it is tried in vain.
constexpr double kFirstRest = 0.1, kLongestRest = 2;

Clock::duration duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

#if defined(__linux__)
ThreadClock::ThreadClock() {
    clockid_t clock;
    if (pthread_getcpuclockid(pthread_self(), &clock) == 0) clock_ = clock;
    file_ = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
}

ThreadClock::~ThreadClock() {
    if (file_ >= 0) close(file_);
}

double ThreadClock::ran() const {
    timespec time;
    if (clock_gettime(clock_, &time) != 0) return 0;
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// "time on the processor, time in the queue, number of turns", in nanoseconds.
double ThreadClock::waited() const {
    char text[64];
    const ssize_t n = file_ < 0 ? -1 : pread(file_, text, sizeof(text) - 1, 0);
    if (n <= 0) return 0;
    text[n] = 0;
    char* end;
    strtoull(text, &end, 10);
    return 1e-9 * static_cast<double>(strtoull(end, nullptr, 10));
}
#else
ThreadClock::ThreadClock() {}
ThreadClock::~ThreadClock() {}
double ThreadClock::ran() const { return 0; }
double ThreadClock::waited() const { return 0; }
#endif

ThreadClock& ThreadClock::of_this_thread() {
    thread_local std::unique_ptr<ThreadClock> clock;
    thread_local uint32_t forks = 0;
    if (!clock || forks != fork_count()) {
        clock = std::make_unique<ThreadClock>();
        forks = fork_count();
    }
    return *clock;
}

Crowd::Crowd(int n_threads)
    : size_(n_threads),
      members_(std::make_unique<Member[]>(static_cast<size_t>(n_threads))),
      taking_part_(n_threads),
      awake_(n_threads),
      looked_(Clock::now()),
      wakes_at_(looked_),
      woke_(looked_),
      waited_(static_cast<size_t>(n_threads)) {}

void Crowd::shrink(int n_threads) { taking_part_ = awake_ = size_ = n_threads; }

void Crowd::enter(const ThreadClock& first) {
    if (member(0).clock.exchange(&first) != &first) waited_[0] = first.waited();
}

void Crowd::look() {
    const auto now = Clock::now();
    const double passed = seconds(now - looked_);
    if (passed < kLook) return;
    looked_ = now;
    double waited = 0;
    for (int i = 0; i < size_; ++i)
        if (const ThreadClock* clock = member(i).clock) {
            double& before = waited_[static_cast<size_t>(i)];
            const double all = clock->waited(), more = all - std::exchange(before, all);
            if (i < taking_part()) waited += more;
        }
    const int n = taking_part();
    // After a pause of the calls, nothing is known of the time that counts.
    const bool is_recent = passed < 4 * kLook;
    if (n > 1 && is_recent && waited > kBearable * passed) {
        const bool in_vain = seconds(now - woke_) < rest_;
        rest_ = in_vain ? std::min(2 * rest_, kLongestRest) : kFirstRest;
        const int too_many = static_cast<int>(waited / passed / kOneThread + 0.5);
        taking_part_ = std::max(1, n - std::max(1, too_many));
        awake_ = taking_part();
        wakes_at_ = now + duration(rest_);
    } else if (n < size_ && now >= wakes_at_) {
        taking_part_ = n + 1;
        woke_ = now;
        wakes_at_ = now + duration(std::max(rest_, kFirstRest));
    }
}

Watch::Watch(Crowd& crowd, int thread)
    : crowd_(crowd),
      thread_(thread),
      last_(Clock::now()),
      ran_(static_cast<size_t>(crowd.size())) {
    is_held_up();
}

bool Watch::is_held_up() {
    const auto now = Clock::now();
    const double passed = seconds(now - std::exchange(last_, now));
    bool found = false;
    for (int i = 0; i < crowd_.size(); ++i) {
        const Member& member = crowd_.member(i);
        const ThreadClock* clock = member.clock;
        if (i == thread_ || !clock) continue;
        const double ran = clock->ran();
        double& before = ran_[static_cast<size_t>(i)];
        if (member.holds && before > 0 && ran - before < passed / 2) found = true;
        before = ran;
    }
    return found;
}

}  // namespace starcoder
