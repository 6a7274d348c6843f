#include "sys/threads.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "sys/active_threads.h"
#include "sys/clock.h"
#include "sys/float_state.h"
#include "sys/schedule.h"

namespace starcoder {

namespace {

// A worker without work spins, then sleeps: the system takes 70 microseconds to wake it. Between
// two tokens the thread that drives it chooses one and makes text of it, for a quarter to two
// thirds of a millisecond.
constexpr auto kIdleSpin = std::chrono::milliseconds(1);

// Spins, then sleeps, until `value` is no longer `old`.
void wait_change(const std::atomic<uint32_t>& value, uint32_t old) {
    const auto deadline = Clock::now() + kIdleSpin;
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            if (value.load(std::memory_order_acquire) != old) return;
            relax();
        }
        if (Clock::now() > deadline) value.wait(old, std::memory_order_acquire);
    }
}

// Workers wait for calls. A call does not wait for a worker that is late or asleep: it ends without
// it, and a `Run` is used again only when no thread is inside.
class Pool {
  public:
    explicit Pool(int wanted) : wanted_(wanted), active_(wanted) {
        workers_.reserve(static_cast<size_t>(wanted));
        try {
            for (int i = 1; i < wanted; ++i) workers_.emplace_back([this, i] { work(i); });
        } catch (const std::exception&) {
            // No thread is to be had, or no memory for one: those that there are will do.
        }
        size_ = 1 + static_cast<int>(workers_.size());
        active_.shrink(size_);
    }

    ~Pool() {
        is_stopping_ = true;
        wake_sleepers();
        next_round();
        for (auto& worker : workers_) worker.join();
    }

    int wanted() const { return wanted_; }
    int size() const { return size_; }
    ActiveThreads& active() { return active_; }

    // A run that no thread is inside of; to be called between `end` and `start`.
    Run* free_run() {
        for (const auto& run : runs_)
            if (is_free(run.get())) return run.get();
        return runs_.emplace_back(std::make_unique<Run>(wanted_)).get();
    }

    void start(Run& run) {
        // In this order: a worker that has seen the new count of `wakeups_` sees the call too, and
        // does not sleep through it.
        if (run.n_threads() > 1) current_ = &run;
        if (active_.wakes(run.n_threads())) wake_sleepers();
        if (run.n_threads() > 1) next_round();
    }
    void end() { current_ = nullptr; }

  private:
    bool is_free(const Run* run) {
        for (int i = 1; i < size_; ++i)
            if (active_.state(i).inside == run) return false;
        return true;
    }
    void next_round() {
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }
    void wake_sleepers() {
        wakeups_.fetch_add(1);
        wakeups_.notify_all();
    }

    // The call of now, which is kept until the thread leaves.
    Run* enter(ThreadState& self) {
        for (;;) {
            Run* run = current_;
            self.inside = run;
            if (current_ == run) return run;
        }
    }

    void work(int index) {
        const FloatState state;
        ThreadState& self = active_.state(index);
        self.id = thread_id();
        self.clock = cpu_clock();
        for (uint32_t round = 0;;) {
            wait_change(round_, round);
            round = round_.load(std::memory_order_acquire);
            if (is_stopping_) return;
            const uint32_t wakeups = wakeups_;
            Run* run = enter(self);
            if (run && index < run->n_threads()) run->walk(index);
            self.inside = nullptr;
            // A thread that takes no part sleeps until more are wanted.
            if (index >= active_.n_active() && !is_stopping_) wakeups_.wait(wakeups);
        }
    }

    const int wanted_;
    int size_ = 1;
    ActiveThreads active_;
    std::vector<std::unique_ptr<Run>> runs_;
    alignas(64) std::atomic<uint32_t> round_{0};
    std::atomic<Run*> current_{nullptr};
    std::atomic<uint32_t> wakeups_{0};
    std::atomic<bool> is_stopping_{false};
    std::vector<std::thread> workers_;
};

std::atomic<uint32_t> forks{0};
std::atomic<int> wanted{1};
std::atomic<void (*)()> poll_check{nullptr};

std::mutex renewal;

// A forked child has the one thread that forked: it starts with fresh locks and a fresh pool.
[[maybe_unused]] const int forking = pthread_atfork(nullptr, nullptr, [] {
    ++forks;
    new (&renewal) std::mutex();
});

// Never destroyed: the process may end while a thread of Python's is in here.
Turn& turn = *new Turn;
Pool* pool = nullptr;
uint32_t pool_forks = 0;

// The pool, with as many of the wanted threads as could be started. The caller has its turn.
Pool& started_pool() {
    if (pool && pool_forks != fork_count()) pool = nullptr;  // its threads cannot be joined
    if (!pool || pool->wanted() != wanted) {
        delete std::exchange(pool, nullptr);
        pool = new Pool(wanted);
        pool_forks = fork_count();
    }
    return *pool;
}

thread_local std::unique_ptr<Run> spare;  // of a thread that works alone
thread_local int depth = 0;  // of its calls: the handler of a signal may make one in another

}  // namespace

void set_n_threads(int n) { wanted = std::max(1, n); }

int n_threads() { return wanted; }

int start_threads() {
    if (wanted == 1) return 1;
    if (depth > 0) return pool ? pool->size() : 1;  // from the handler of a signal, in a call
    const std::lock_guard lock(turn);
    return started_pool().size();
}

void set_poll(void (*check)()) { poll_check = check; }

void check_poll() {
    if (const auto check = poll_check.load()) check();
}

uint32_t fork_count() { return forks; }

void Turn::lock() {
    if (forks_ != fork_count()) {
        const std::lock_guard lock(renewal);
        if (forks_ != fork_count()) {
            new (&mutex_) std::mutex();
            forks_ = fork_count();
        }
    }
    mutex_.lock();
}

Call::Call(Sharing sharing) : sharing_(sharing) {
    if (starcoder::n_threads() == 1 || depth > 0) {
        own_ = spare ? std::move(spare) : std::make_unique<Run>(1);
        ++depth;
        return;
    }
    turn.lock();
    try {
        Pool& all = started_pool();
        ActiveThreads& active = all.active();
        active.enter();
        active.look();
        n_threads_ = sharing == Sharing::EachItsOwn ? all.size() : active.n_active();
    } catch (...) {
        turn.unlock();
        throw;
    }
    ++depth;
}

Call::~Call() {
    --depth;
    if (own_)
        spare = std::move(own_);
    else
        turn.unlock();
}

Schedule& Call::schedule() {
    if (!schedule_) schedule_ = std::make_shared<Schedule>(n_threads_);
    return *schedule_;
}

void Call::run(std::shared_ptr<const Schedule> schedule) {
    if (own_) {
        own_->begin(std::move(schedule), nullptr, false);
        own_->walk(0);
        return own_->rethrow();
    }
    Run* run = pool->free_run();
    run->begin(std::move(schedule), n_threads_ > 1 ? &pool->active() : nullptr,
               sharing_ == Sharing::EachItsOwn);
    pool->start(*run);
    run->walk(0);
    pool->end();
    run->rethrow();
}

}  // namespace starcoder
