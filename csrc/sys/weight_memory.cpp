#include "sys/weight_memory.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "sys/arena.h"
#include "sys/clock.h"

namespace starcoder {

namespace {

constexpr size_t kChunk = size_t{64} << 20;

std::mutex mutex;
std::vector<std::weak_ptr<Chunk>> chunks;  // matrices keep them alive, not we
double credit = 0;                         // seconds; a page takes longer than most calls give
bool always_scattered = false;

// A forked child would find the mutex locked for good, were another thread in here.
[[maybe_unused]] const int forking =
    pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });

}  // namespace

// Several matrices share a chunk, since what is left at the end of a mapping would come in small
// pages, if each had its own: 60,000 faults for a 1B model, now 32,000.
std::shared_ptr<uint8_t> weight_memory(size_t nbytes) {
    const std::lock_guard lock(mutex);
    auto chunk = chunks.empty() ? nullptr : chunks.back().lock();
    uint8_t* data = chunk ? chunk->take(nbytes) : nullptr;
    if (!data) {
        const bool scattered = always_scattered || (chunk && chunk->is_scattered());
        const Pages pages = scattered ? Pages::Small : Pages::Quick;
        try {
            chunk = std::make_shared<Chunk>(std::max(nbytes, kChunk), pages);
        } catch (const std::bad_alloc&) {  // of addresses: a limit of the process
            chunk = std::make_shared<Chunk>(nbytes, pages);
        }
        chunks.push_back(chunk);
        data = chunk->take(nbytes);
    }
    return {chunk, data};
}

bool gather_weights(double seconds) {
    const std::lock_guard lock(mutex);
    credit += seconds;
    while (credit > 0 && !chunks.empty()) {
        const auto start = Clock::now();
        const auto chunk = chunks.back().lock();
        if (!chunk || !chunk->gather()) chunks.pop_back();
        credit -= seconds_since(start);
    }
    if (chunks.empty()) credit = 0;
    return !chunks.empty();
}

void scatter_weights(bool always) {
    const std::lock_guard lock(mutex);
    always_scattered = always;
}

}  // namespace starcoder
