#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "clock.h"

namespace starcoder {

namespace {

// Who waits for others spins this long, then sleeps: the system takes 70 microseconds to wake it. A
// step of StarCoderBase-1B, two runs each: 43 and 44 ms at 50 microseconds, 39 and 42 at 300.
constexpr auto kSpin = std::chrono::microseconds(200);

// A worker without work spins for longer: between two tokens the thread that drives it chooses one
// and makes text of it, for a quarter to two thirds of a millisecond.
constexpr auto kIdleSpin = std::chrono::milliseconds(1);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Spins, then sleeps, until `value` is no longer `old`.
void wait_change(const std::atomic<uint32_t>& value, uint32_t old, Clock::duration spin) {
    const auto deadline = Clock::now() + spin;
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            pause();
        }
        if (Clock::now() > deadline) value.wait(old, std::memory_order_acquire);
    }
}

// Workers wait for `round` to change, run `task(index)`, and count down `pending`.
class Pool {
  public:
    explicit Pool(int n) : size_(n) {
        for (int i = 1; i < n; ++i) workers_.emplace_back([this, i] { work(i); });
    }

    ~Pool() {
        task_ = nullptr;
        start();
        for (auto& worker : workers_) worker.join();
    }

    int size() const { return size_; }

    void run(const std::function<void(int)>& task) {
        task_ = &task;
        pending_.store(static_cast<uint32_t>(size_ - 1), std::memory_order_relaxed);
        start();
        task(0);
        uint32_t left;
        while ((left = pending_.load(std::memory_order_acquire)) != 0)
            wait_change(pending_, left, kSpin);
    }

  private:
    void start() {
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }

    void work(int index) {
        for (uint32_t seen = 0;;) {
            wait_change(round_, seen, kIdleSpin);
            ++seen;  // run() waits for every worker, so no round is ever missed
            if (!task_) return;
            (*task_)(index);
            if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
        }
    }

    const int size_;
    const std::function<void(int)>* task_ = nullptr;
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<uint32_t> pending_{0};
    std::vector<std::thread> workers_;
};

std::mutex mutex;  // one parallel call at a time: callers from several threads take turns
std::unique_ptr<Pool> pool;
std::atomic<int> wanted{1};

// A forked child has no workers and perhaps a locked mutex: it starts with a fresh pool. The old
// one is leaked, since its threads cannot be joined.
void forget_pool() {
    pool.release();
    new (&mutex) std::mutex();
}

void run(int n, const std::function<void(Team&)>& f) {
    const std::lock_guard lock(mutex);
    if (!pool || pool->size() != n) {
        static const int once = pthread_atfork(nullptr, nullptr, forget_pool);
        (void)once;
        pool.reset();
        pool = std::make_unique<Pool>(n);
    }
    Meeting meeting(n);
    pool->run([&](int i) {
        Team team(meeting, i);
        f(team);
    });
}

}  // namespace

void set_n_threads(int n) { wanted = std::max(1, n); }

int n_threads() { return wanted; }

void Team::barrier() {
    if (meeting_.size == 1) return;
    const uint32_t round = meeting_.round.load(std::memory_order_relaxed);
    if (meeting_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < meeting_.size)
        return wait_change(meeting_.round, round, kSpin);
    meeting_.arrived.store(0, std::memory_order_relaxed);
    meeting_.round.store(round + 1, std::memory_order_release);
    meeting_.round.notify_all();
}

void together(int n, const std::function<void(Team&)>& f) {
    if (n == 1) {
        Meeting alone(1);
        Team team(alone, 0);
        return f(team);
    }
    run(n, f);
}

void parallel_pieces(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
    const int threads = n_threads();
    if (n <= grain || threads == 1) {
        if (n > 0) f(0, n);
        return;
    }
    together(threads, [&](Team& team) {
        const auto take = team.pieces(grain);
        for (int64_t i; (i = take()) < n;) f(i, std::min(i + grain, n));
    });
}

}  // namespace starcoder
