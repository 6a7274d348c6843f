#include "sys/schedule.h"

#include <algorithm>
#include <stdexcept>
#include <thread>

#include "sys/active_threads.h"
#include "sys/clock.h"
#include "sys/threads.h"

namespace starcoder {

namespace {

// A waiting thread spins for kSpin, then checks whether the threads it waits for are running, and
// again after each pause. A phase of decoding takes 5 to 500 microseconds.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kPause = std::chrono::microseconds(25),
               kLongestPause = std::chrono::microseconds(200);

// If they are not, it yields for this long, then sleeps.
constexpr auto kYield = std::chrono::milliseconds(1);
constexpr auto kSleep = std::chrono::microseconds(100);

// Of a long call, in ms. The check may have to wait for Python's interpreter lock.
constexpr int64_t kLookEvery = 10, kPollEvery = 50;

}  // namespace

Run::Run(int most_threads)
    : claims_(std::make_unique<Claim[]>(static_cast<size_t>(most_threads))) {}

void Run::begin(std::shared_ptr<const Schedule> schedule, ActiveThreads* active,
                bool each_its_own) {
    schedule_ = std::move(schedule);
    n_threads_ = schedule_->n_threads();
    active_ = active;
    each_its_own_ = each_its_own;
    forks_ = fork_count();
    for (int i = 0; i < n_threads_; ++i)
        claims_[static_cast<size_t>(i)].next.store(0, std::memory_order_relaxed);
    next_look_ = 0;
    done_.store(0, std::memory_order_relaxed);
    failed_.store(false, std::memory_order_relaxed);
    error_ = nullptr;
}

void Run::walk(int thread) noexcept {
    const std::vector<Phase>& phases = schedule_->phases();
    for (size_t i = 0; i < phases.size(); ++i) {
        const Phase& phase = phases[i];
        if (thread > 0 && !each_its_own_ && thread >= active_->n_active()) return;
        work(phase, thread, thread, is_large(phase) ? n_threads_ : 1);
        const bool is_last = i + 1 == phases.size();
        prefetch(i + 1, thread);
        if (!is_last || thread == 0) wait(phase, thread);
    }
}

void Run::work(const Phase& phase, int thread, int first, int n_ranges) {
    Pieces pieces(*this, phase, thread, first, n_ranges);
    if (pieces.take()) {
        ThreadState* self = active_ ? &active_->state(thread) : nullptr;
        if (self) self->holds.store(true, std::memory_order_relaxed);
        try {
            phase.work(phase.closure, pieces);
        } catch (...) {
            fail(std::current_exception());
            pieces.take();
        }
        if (self) self->holds.store(false, std::memory_order_relaxed);
    }
    // After a failure pieces are taken and not done, but counted.
    if (pieces.n_taken()) done_.fetch_add(pieces.n_taken(), std::memory_order_acq_rel);
}

// Asks for the first weights of the next phase that has some, while the others finish.
void Run::prefetch(size_t i, int thread) const {
    constexpr int64_t kBytes = 16 << 10;
    constexpr size_t kNear = 4;  // phases: attention lies between two products
    const std::vector<Phase>& phases = schedule_->phases();
    const size_t end = std::min(i + kNear, phases.size());
    while (i < end && !phases[i].weights) ++i;
    if (i == end) return;
    const Phase& phase = phases[i];
    const int64_t first = begin_of(phase, thread), n = begin_of(phase, thread + 1) - first;
    const uint8_t* begin = phase.weights + (first - phase.first) * phase.weight_stride;
    const int64_t nbytes = std::min(kBytes, n * phase.weight_stride);
    for (int64_t at = 0; at < nbytes; at += 64) __builtin_prefetch(begin + at);
}

// A thread that has done its own pieces waits a moment before it takes pieces of other threads: in
// most cases they are done too, and reading their counters would take the cache line from them.
void Run::wait(const Phase& phase, int thread) {
    constexpr int kMoment = 32;
    for (int i = 0; i < kMoment; ++i) {
        if (is_done(phase)) return;
        relax();
    }
    // After that nothing is left to claim.
    if (!each_its_own_) work(phase, thread, next(thread), n_threads_ - 1);
    const auto deadline = Clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (is_done(phase)) return;
            relax();
        }
    } while (Clock::now() < deadline);
    wait_long(phase, thread);
}

// A thread that runs its pieces is worth spinning for. One that does not run may be waiting for
// this very processor: only then is it worth giving away, since another program may keep it for
// long.
void Run::wait_long(const Phase& phase, int thread) {
    Watch watch(*active_, thread);
    const auto begin = Clock::now();
    for (auto pause = kPause; !is_done(phase); pause = std::min(2 * pause, kLongestPause)) {
        const auto until = Clock::now() + pause;
        while (Clock::now() < until)
            for (int i = 0; i < 64; ++i) {
                if (is_done(phase)) return;
                relax();
            }
        if (thread == 0) poll(coarse_ms());
        if (forks_ != fork_count()) {  // a signal handler has forked: there is no other thread
            fail(std::make_exception_ptr(std::runtime_error("this process was forked in a call")));
            done_.store(phase.first + phase.n, std::memory_order_relaxed);
        }
        if (!watch.is_held_up()) continue;
        if (Clock::now() - begin < kYield)
            std::this_thread::yield();
        else
            std::this_thread::sleep_for(kSleep);
    }
}

// Looks at the clock at every take, or at every eighth where pieces are quick: a piece takes a
// microsecond with one token, and a millisecond or more with a prompt.
void Run::count_take() {
    if (++n_takes_ < takes_a_poll_) return;
    const int64_t now = coarse_ms();
    takes_a_poll_ = now - last_take_ms_ > 1 ? 1 : std::min(2 * takes_a_poll_, 8);
    n_takes_ = 0;
    last_take_ms_ = now;
    poll(now);
}

void Run::poll(int64_t now) {
    if (now < next_look_) return;
    const bool is_first = next_look_ == 0;
    next_look_ = now + kLookEvery;
    if (is_first) next_poll_ = now + kPollEvery;
    if (active_ && !is_first) active_->look();
    if (now < next_poll_) return;
    next_poll_ = now + kPollEvery;
    try {
        check_poll();
    } catch (...) {
        fail(std::current_exception());
    }
}

void Run::fail(std::exception_ptr error) {
    if (!failed_.exchange(true)) error_ = std::move(error);
}

void Run::rethrow() const {
    if (error_) std::rethrow_exception(error_);
}

bool Pieces::claim(int thread) {
    std::atomic<int64_t>& next = run_.claims_[static_cast<size_t>(thread)].next;
    const int64_t begin = run_.begin_of(phase_, thread), end = run_.begin_of(phase_, thread + 1);
    int64_t seen = next.load(std::memory_order_relaxed);
    do {
        piece_ = std::max(seen, begin);
        if (piece_ >= end) return false;
    } while (!next.compare_exchange_weak(seen, piece_ + 1, std::memory_order_relaxed));
    ++n_taken_;
    return true;
}

bool Pieces::take() {
    if (thread_ == 0) run_.count_take();
    for (;;) {
        if (claim(range_)) {
            if (!run_.failed_.load(std::memory_order_relaxed)) return true;
            continue;  // after a failure the rest is claimed, and not done
        }
        if (--n_ranges_ <= 0) return false;
        range_ = run_.next(range_);
    }
}

}  // namespace starcoder
