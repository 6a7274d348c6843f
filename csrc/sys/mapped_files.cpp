#include "sys/mapped_files.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <new>

namespace starcoder {

namespace {

// Read by a signal handler, which may take no lock: slots are never moved, only added and
// reused. `start` is written last and cleared first.
struct Mapping {
    std::atomic<uintptr_t> start{0};  // 0: free
    std::atomic<size_t> length{0};
    std::atomic<bool> lost_bytes{false};
};

constexpr int kBlockLen = 64, kMaxBlocks = 1024;
using Block = std::array<Mapping, kBlockLen>;

std::mutex mutex;  // of adding
std::array<std::atomic<Block*>, kMaxBlocks> blocks{};

struct sigaction previous;                    // the handler of signals elsewhere
std::atomic<const void*> passed_on{nullptr};  // the last address of which `previous` was told

Mapping& mapping_of(int number) { return (*blocks[number / kBlockLen])[number % kBlockLen]; }

Mapping* find(uintptr_t address) {
    for (auto& slot : blocks) {
        Block* block = slot;
        if (!block) return nullptr;
        for (Mapping& mapping : *block) {
            const uintptr_t start = mapping.start;
            if (start && start <= address && address - start < mapping.length) return &mapping;
        }
    }
    return nullptr;
}

// Zeros from the page of `address` to the mapping's end: all that a shorter file no longer has.
bool fill(const Mapping& mapping, uintptr_t address) {
    const uintptr_t page = address & ~static_cast<uintptr_t>(sysconf(_SC_PAGESIZE) - 1);
    const size_t left = mapping.start + mapping.length - page;
    return mmap(reinterpret_cast<void*>(page), left, PROT_READ,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
}

void pass_on(int number, siginfo_t* info, void* context) {
    // A handler that returns has the instruction run again, which comes back here: once is enough.
    const bool again = passed_on.exchange(info->si_addr) == info->si_addr;
    if (!again && (previous.sa_flags & SA_SIGINFO)) {
        previous.sa_sigaction(number, info, context);
    } else if (!again && previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
    } else {
        signal(number, SIG_DFL);
    }
}

void on_bus_error(int number, siginfo_t* info, void* context) {
    Mapping* mapping = find(reinterpret_cast<uintptr_t>(info->si_addr));
    if (mapping && fill(*mapping, reinterpret_cast<uintptr_t>(info->si_addr))) {
        mapping->lost_bytes = true;
        return;
    }
    pass_on(number, info, context);
}

// Other libraries (Python's faulthandler) may have taken the signal since.
void take_signal() {
    struct sigaction now = {};
    sigaction(SIGBUS, nullptr, &now);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error) return;
    previous = now;
    struct sigaction ours = {};
    ours.sa_sigaction = on_bus_error;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

int watch_mapping(const void* start, size_t length) {
    const std::lock_guard lock(mutex);
    take_signal();
    for (int i = 0; i < kMaxBlocks; ++i) {
        if (!blocks[i]) blocks[i] = new Block;
        for (int j = 0; j < kBlockLen; ++j) {
            Mapping& mapping = (*blocks[i])[j];
            if (mapping.start) continue;
            mapping.lost_bytes = false;
            mapping.length = length;
            mapping.start = reinterpret_cast<uintptr_t>(start);
            return i * kBlockLen + j;
        }
    }
    throw std::bad_alloc();
}

bool lost_bytes(int mapping) { return mapping_of(mapping).lost_bytes; }

void unwatch_mapping(int mapping) { mapping_of(mapping).start = 0; }

}  // namespace starcoder
