#include "crowd.h"

#include <algorithm>
#include <utility>

namespace starcoder {

namespace {

// A thread out of n is worth its place while less than 1 / n of the time is lost to it; memory does
// not let it bring as much, so half of that.
constexpr double kBearable = 0.5;
constexpr double kMostCredit = 10e-3;  // two or three times that a system puts a thread aside

// A thread sleeps for so long, twice as long each time it is tried in vain.
constexpr double kFirstRest = 0.1, kLongestRest = 2;

constexpr double kLook = 200e-6;  // from one look at the others to the next

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
#else
int cpu_clock() { return 0; }
double cpu_seconds(int) { return 0; }
#endif

Crowd::Crowd(int n_threads)
    : size_(n_threads),
      members_(std::make_unique<Member[]>(static_cast<size_t>(n_threads))),
      taking_part_(n_threads),
      awake_(n_threads),
      credit_(kMostCredit),
      credited_(Clock::now()),
      rests_until_(credited_),
      tried_(credited_) {}

void Crowd::shrink(int n_threads) { taking_part_ = awake_ = size_ = n_threads; }

int Crowd::next_call() {
    if (taking_part() == size_) return size_;
    const std::lock_guard lock(mutex_);
    const auto now = Clock::now();
    if (now >= rests_until_) {
        taking_part_ = std::min(size_, taking_part() + std::max(1, size_ / 4));
        credit_ = kMostCredit;
        credited_ = tried_ = now;
        rests_until_ = now + std::chrono::duration_cast<Clock::duration>(
                                 std::chrono::duration<double>(kLongestRest));
    }
    return taking_part();
}

void Crowd::lost(double seconds) {
    const std::lock_guard lock(mutex_);
    const int n = taking_part();
    if (n == 1) return;
    const auto now = Clock::now();
    credit_ += kBearable / n * std::chrono::duration<double>(now - credited_).count() - seconds;
    credit_ = std::min(credit_, kMostCredit);
    credited_ = now;
    if (credit_ >= 0) return;
    const bool in_vain = std::chrono::duration<double>(now - tried_).count() < rest_;
    rest_ = in_vain ? std::min(2 * rest_, kLongestRest) : kFirstRest;
    taking_part_ = n - std::max(1, n / 4);
    awake_ = taking_part();
    credit_ = kMostCredit;
    rests_until_ = now + std::chrono::duration_cast<Clock::duration>(
                             std::chrono::duration<double>(rest_));
}

Watch::Watch(Crowd& crowd, int thread)
    : crowd_(crowd),
      thread_(thread),
      watches_(!crowd.watched_.exchange(true)),
      last_(Clock::now()),
      ran_(static_cast<size_t>(crowd.size())) {
    if (!watches_) return;
    for (int i = 0; i < crowd_.size(); ++i)
        ran_[static_cast<size_t>(i)] = cpu_seconds(crowd_.member(i).clock);
}

Watch::~Watch() {
    if (watches_) crowd_.watched_ = false;
}

void Watch::look() {
    if (!watches_) return;
    const auto now = Clock::now();
    const double passed = std::chrono::duration<double>(now - last_).count();
    if (passed < kLook) return;
    last_ = now;
    bool is_held_up = false;
    for (int i = 0; i < crowd_.size(); ++i) {
        Member& member = crowd_.member(i);
        const double before = std::exchange(ran_[static_cast<size_t>(i)], cpu_seconds(member.clock));
        const double ran = ran_[static_cast<size_t>(i)] - before;
        if (i != thread_ && member.holds && before > 0 && ran < passed / 2) is_held_up = true;
    }
    if (is_held_up) crowd_.lost(passed);
}

}  // namespace starcoder
