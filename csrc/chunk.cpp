#include "chunk.h"

#include <sys/mman.h>

#include <chrono>
#include <new>

namespace starcoder {

namespace {

// False: the system has no such pages.
bool advise([[maybe_unused]] uint8_t* at, [[maybe_unused]] size_t nbytes,
            [[maybe_unused]] bool huge) {
#if defined(MADV_HUGEPAGE)
    return madvise(at, nbytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) == 0;
#else
    return false;
#endif
}

bool collapse([[maybe_unused]] uint8_t* page) {
#if defined(__linux__)
    constexpr int kCollapse = 25;  // MADV_COLLAPSE since Linux 6.1; older headers lack it
    return madvise(page, kHugePage, kCollapse) == 0;
#else
    return false;
#endif
}

// A huge page that is there takes 0.1 to 0.3 ms, most of it to be zeroed.
constexpr std::chrono::milliseconds kSlow{1};

bool comes_slowly(uint8_t* page) {
    const auto start = std::chrono::steady_clock::now();
    *const_cast<volatile uint8_t*>(page) = 0;
    return std::chrono::steady_clock::now() - start > kSlow;
}

}  // namespace

Chunk::Chunk(size_t nbytes, Pages pages) : nbytes_(nbytes + kHugePage) {
    void* map = mmap(nullptr, nbytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<uint8_t*>(map);
    next_ = map_ + (kHugePage - reinterpret_cast<uintptr_t>(map_) % kHugePage);
    if (pages != Pages::Small && !advise(next_, nbytes, true)) return;
    if (pages == Pages::Huge || (pages == Pages::Quick && !comes_slowly(next_))) return;
    small_ = next_;
    advise(small_, nbytes, false);
}

Chunk::~Chunk() { munmap(map_, nbytes_); }

bool Chunk::gather() {
    if (!small_ || small_ >= next_) return false;
    const size_t left = static_cast<size_t>(map_ + nbytes_ - small_);
    advise(small_, left, true);  // what cannot be gathered now the system may gather by itself
    if (left < kHugePage || !collapse(small_)) return false;
    small_ += kHugePage;
    return true;
}

}  // namespace starcoder
