#include "sys/weight_memory.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>

#include "sys/clock.h"

namespace starcoder {

namespace {

constexpr size_t kArena = size_t{64} << 20;

constexpr double kCollapseAfter = 10, kCollapseShare = 0.1;

std::mutex mutex;

// A forked child would find the mutex locked for good, were another thread in here.
[[maybe_unused]] const int forking =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

}  // namespace

HugePages& huge_pages() {
    static HugePages& pages = *new HugePages;  // never destroyed: a thread may still be in here
    return pages;
}

// Several matrices share an arena, since what is left at the end of a mapping would come in small
// pages, if each had its own: 60,000 faults for a 1B model, now 32,000.
std::shared_ptr<uint8_t> weight_memory(size_t nbytes) {
    const std::lock_guard lock(mutex);
    HugePages& all = huge_pages();
    auto arena = all.arenas_.empty() ? nullptr : all.arenas_.back().lock();
    uint8_t* data = arena ? arena->take(nbytes) : nullptr;
    if (!data) {
        const bool small = all.always_small_ || (arena && arena->has_small_pages());
        const Pages pages = small ? Pages::Small : Pages::Quick;
        try {
            arena = std::make_shared<Arena>(std::max(nbytes, kArena), pages);
        } catch (const std::bad_alloc&) {  // of addresses: a limit of the process
            arena = std::make_shared<Arena>(nbytes, pages);
        }
        all.arenas_.push_back(arena);
        data = arena->take(nbytes);
    }
    return {arena, data};
}

bool HugePages::collapse(double seconds) {
    const std::lock_guard lock(mutex);
    credit_ += seconds;
    while (credit_ > 0 && !arenas_.empty()) {
        const auto start = Clock::now();
        const auto arena = arenas_.back().lock();
        if (!arena || !arena->collapse()) arenas_.pop_back();
        credit_ -= seconds_since(start);
    }
    if (arenas_.empty()) credit_ = 0;
    return !arenas_.empty();
}

void HugePages::after_run(double seconds) {
    {
        const std::lock_guard lock(mutex);
        ran_ += seconds;
        if (ran_ <= kCollapseAfter || arenas_.empty()) return;
    }
    collapse(kCollapseShare * seconds);
}

void HugePages::begin_small(bool always) {
    const std::lock_guard lock(mutex);
    always_small_ = always;
}

}  // namespace starcoder
