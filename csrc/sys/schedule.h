// A call's work: phases, one after the other, each made of pieces that any thread may take.
//
// A phase begins when the pieces of the one before it are done, not when all threads have arrived:
// a thread that the system has put aside is waited for only while it holds a piece, and what it has
// not taken the others do. Which thread does a piece changes no bit of any result.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace starcoder {

class ActiveThreads;
class Pieces;

struct Phase {
    int64_t first, n;        // its pieces, counted over the whole schedule
    int64_t n_units, grain;  // a piece is so many units, the last one what is left
    void (*work)(const void* closure, Pieces& pieces);
    const void* closure;
    // Where the weights of its first piece lie: what a thread asks memory for while it waits for
    // others. Null: not worth asking for. And the bytes of weights in a piece.
    const uint8_t* weights;
    int64_t weight_stride;
};

// Phases for a number of threads. It may be run many times: what changes in between is in the
// memory that its closures point to.
class Schedule {
  public:
    explicit Schedule(int n_threads) : n_threads_(n_threads) {}

    int n_threads() const { return n_threads_; }
    const std::vector<Phase>& phases() const { return phases_; }

    // Appends a phase over `n_units` units, `grain` a piece. `f(Pieces&)` is copied; each thread
    // that gets a piece calls it, and again when it gets one that another has left. It takes all it
    // can. What it refers to must live while the schedule is run. `weights`, `weight_stride`: see
    // Phase.
    template <class F>
    void add(int64_t n_units, int64_t grain, F f, const uint8_t* weights = nullptr,
             int64_t weight_stride = 0) {
        static_assert(std::is_trivially_destructible_v<F>);
        if (n_units <= 0) return;
        const auto work = [](const void* closure, Pieces& pieces) {
            (*static_cast<const F*>(closure))(pieces);
        };
        const void* kept = new (room(sizeof(F), alignof(F))) F(std::move(f));
        phases_.push_back({n_pieces_, (n_units + grain - 1) / grain, n_units, grain, work, kept,
                           weights, weight_stride});
        n_pieces_ += phases_.back().n;
    }
    // The same for units of equal cost, four pieces or more for each thread.
    template <class F>
    void add(int64_t n_units, F f) {
        const int64_t grain = n_units / (4 * n_threads_);
        add(n_units, grain > 1 ? grain : 1, std::move(f));
    }

  private:
    static constexpr size_t kChunk = size_t{4} << 10;

    void* room(size_t nbytes, size_t alignment) {
        used_ = (used_ + alignment - 1) / alignment * alignment;
        if (chunks_.empty() || used_ + nbytes > kChunk) {
            chunks_.push_back(std::make_unique<std::byte[]>(kChunk));
            used_ = 0;
        }
        return chunks_.back().get() + std::exchange(used_, used_ + nbytes);
    }

    const int n_threads_;
    int64_t n_pieces_ = 0;
    std::vector<Phase> phases_;
    std::vector<std::unique_ptr<std::byte[]>> chunks_;  // of closures
    size_t used_ = 0;
};

// What the threads of one call share. A thread that comes late finds a call that has ended, and may
// read all of this and the schedule: neither goes while a thread is inside. What the closures point
// to may be gone by then, so they are called with a piece in hand only.
class Run {
  public:
    explicit Run(int most_threads);

    void begin(std::shared_ptr<const Schedule> schedule, ActiveThreads* active, bool each_its_own);
    int n_threads() const { return n_threads_; }

    // Does what thread `thread` can do of all phases. Thread 0 returns when all of them are done.
    void walk(int thread) noexcept;
    void rethrow() const;

  private:
    friend class Pieces;

    static constexpr int64_t kLargeShare = int64_t{512} << 10;  // bytes of weights, for each thread

    struct alignas(64) Claim {
        std::atomic<int64_t> next{0};  // piece of this thread's range, counted as in Phase
    };

    int64_t begin_of(const Phase& phase, int thread) const {
        return phase.first + (phase.n * thread + n_threads_ - 1) / n_threads_;
    }
    bool is_done(const Phase& phase) const {
        return done_.load(std::memory_order_acquire) >= phase.first + phase.n;
    }
    // Of a large phase a thread takes the pieces of others at once, without waiting a moment.
    bool is_large(const Phase& phase) const {
        return !each_its_own_ && phase.n * phase.weight_stride > n_threads_ * kLargeShare;
    }
    int next(int thread) const { return thread + 1 == n_threads_ ? 0 : thread + 1; }
    void work(const Phase& phase, int thread, int first, int n_ranges);
    void prefetch(size_t i, int thread) const;
    void wait(const Phase& phase, int thread);
    void wait_long(const Phase& phase, int thread);
    void count_take();
    void poll(int64_t now);
    void fail(std::exception_ptr error);

    std::shared_ptr<const Schedule> schedule_;
    int n_threads_ = 1;
    ActiveThreads* active_ = nullptr;  // null: the caller is alone
    bool each_its_own_ = false;
    uint32_t forks_ = 0;  // when it began
    std::unique_ptr<Claim[]> claims_;
    std::exception_ptr error_;
    alignas(64) int64_t next_look_ = 0, next_poll_ = 0, last_take_ms_ = 0;  // of thread 0, in ms
    int n_takes_ = 0, takes_a_poll_ = 1;
    alignas(64) std::atomic<int64_t> done_{0};  // pieces
    alignas(64) std::atomic<bool> failed_{false};
};

// The pieces that one thread takes of a phase: its own range from front to back, or, while it
// waits, what others have left of theirs. `for (const auto [begin, end] : pieces)` goes over their
// units.
class Pieces {
  public:
    struct Range {
        int64_t begin, end;
    };

    // Of `n_ranges` threads, from `first` on.
    Pieces(Run& run, const Phase& phase, int thread, int first, int n_ranges)
        : run_(run), phase_(phase), thread_(thread), range_(first), n_ranges_(n_ranges) {}

    int thread() const { return thread_; }
    bool take();           // another piece; false: none is left
    Range units() const {  // of the piece taken last
        const int64_t begin = (piece_ - phase_.first) * phase_.grain;
        return {begin,
                begin + phase_.grain < phase_.n_units ? begin + phase_.grain : phase_.n_units};
    }
    int64_t n_taken() const { return n_taken_; }

    class Iterator {
      public:
        explicit Iterator(Pieces* pieces) : pieces_(pieces) {}
        Range operator*() const { return pieces_->units(); }
        Iterator& operator++() {
            if (!pieces_->take()) pieces_ = nullptr;
            return *this;
        }
        bool operator!=(const Iterator& other) const { return pieces_ != other.pieces_; }

      private:
        Pieces* pieces_;
    };
    Iterator begin() { return Iterator(this); }  // the first has been taken
    Iterator end() { return Iterator(nullptr); }

  private:
    bool claim(int thread);

    Run& run_;
    const Phase& phase_;
    const int thread_;
    int range_, n_ranges_;  // whose is taken from, and how many are still to be
    int64_t piece_ = 0, n_taken_ = 0;
};

// One call of the core; it is in threads.cpp, beside the pool. Calls of several threads take turns,
// unless they use one thread.
//
//     Call call;
//     call.schedule().add(n, 16, [=](Pieces& pieces) {
//         for (const auto [begin, end] : pieces) ...
//     });
//     call.run();
class Call {
  public:
    // EachItsOwn: all threads are waited for, and take the pieces of their own ranges only. For
    // measurements.
    enum class Sharing { Any, EachItsOwn };
    explicit Call(Sharing sharing = Sharing::Any);  // waits for its turn
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    int n_threads() const { return n_threads_; }  // that a schedule is to be made for

    Schedule& schedule();  // of this call alone

    // Runs all phases: of `schedule()`, or of one that is kept. Throws what a piece, or the check
    // of `set_poll`, threw; nothing runs any more then.
    void run() { run(std::move(schedule_)); }
    void run(std::shared_ptr<const Schedule> schedule);

  private:
    const Sharing sharing_;
    std::unique_ptr<Run> own_;  // of a caller that is alone; else it has its turn with the pool
    int n_threads_ = 1;
    std::shared_ptr<Schedule> schedule_;
};

// Calls f(begin, end) on disjoint ranges that cover 0 .. n, in pieces of `grain`.
template <class F>
void parallel_pieces(int64_t n, int64_t grain, const F& f) {
    Call call;
    call.schedule().add(n, grain, [&f](Pieces& pieces) {
        for (const auto [begin, end] : pieces) f(begin, end);
    });
    call.run();
}

}  // namespace starcoder
