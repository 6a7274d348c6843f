#include "sys/arena.h"

#include <sys/mman.h>

#include <new>
#include <utility>

#include "sys/clock.h"

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

bool collapse_page([[maybe_unused]] uint8_t* page) {
#if defined(__linux__)
    constexpr int kCollapse = 25;  // MADV_COLLAPSE since Linux 6.1; older headers lack it
    return madvise(page, kHugePage, kCollapse) == 0;
#else
    return false;
#endif
}

// A huge page that is there takes 0.1 to 0.3 ms, most of it to be zeroed.
constexpr double kSlow = 1e-3;

bool is_slow(uint8_t* page) {
    volatile uint8_t* byte = page;
    const auto start = Clock::now();
    *byte = 0;
    return seconds_since(start) > kSlow;
}

}  // namespace

Arena::Arena(size_t nbytes, Pages pages) {
    const size_t length = nbytes + kHugePage;
    void* map = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<uint8_t*>(map);
    end_ = map_ + length;
    first_ = next_ = map_ + (kHugePage - reinterpret_cast<uintptr_t>(map_) % kHugePage);
    small_ = pages == Pages::Small ? first_ : nullptr;
    const bool huge = advise(first_, nbytes, pages != Pages::Small);
    quick_ = huge && pages == Pages::Quick;
}

Arena::~Arena() { munmap(map_, static_cast<size_t>(end_ - map_)); }

uint8_t* Arena::take(size_t nbytes) {
    if (nbytes > static_cast<size_t>(end_ - next_)) return nullptr;
    uint8_t* data = std::exchange(next_, next_ + nbytes);
    if (quick_) probe(data);
    return data;
}

// Every fourth page of what was just taken: the first ones may still be there when no other is.
void Arena::probe(uint8_t* begin) {
    constexpr size_t kApart = 4 * kHugePage;
    const size_t at = (static_cast<size_t>(begin - first_) + kApart - 1) / kApart * kApart;
    for (uint8_t* page = first_ + at; quick_ && page < next_; page += kApart)
        if (is_slow(page)) {
            quick_ = false;
            small_ = page;
            advise(page, static_cast<size_t>(end_ - page), false);
        }
}

bool Arena::collapse() {
    if (!small_ || small_ >= next_) return false;
    const auto left = static_cast<size_t>(end_ - small_);
    advise(small_, left, true);  // what is not collapsed now the system may collapse by itself
    if (left < kHugePage || !collapse_page(small_)) return false;
    small_ += kHugePage;
    return true;
}

}  // namespace starcoder
