// Large stretches of memory, straight from the system.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace starcoder {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Fresh zeroed memory in huge pages, where the system has them: fewer faults while packing, fewer
// misses of the address cache while decoding.
class Chunk {
  public:
    explicit Chunk(size_t nbytes) : nbytes_(nbytes + kHugePage) {
        void* map =
            mmap(nullptr, nbytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) throw std::bad_alloc();
        map_ = static_cast<uint8_t*>(map);
        next_ = map_ + (kHugePage - reinterpret_cast<uintptr_t>(map_) % kHugePage);
#if defined(MADV_HUGEPAGE)
        madvise(next_, nbytes, MADV_HUGEPAGE);
#endif
    }
    ~Chunk() { munmap(map_, nbytes_); }
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;

    uint8_t* take(size_t nbytes) {  // null: no room
        const size_t left = static_cast<size_t>(map_ + nbytes_ - next_);
        if (nbytes > left) return nullptr;
        return std::exchange(next_, next_ + nbytes);
    }

  private:
    size_t nbytes_;
    uint8_t *map_, *next_;
};

}  // namespace starcoder
