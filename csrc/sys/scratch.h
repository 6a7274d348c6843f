// Memory that is needed for the length of an operation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "sys/arena.h"

namespace starcoder {

// A buffer of the calling thread, at least `n` long; `which`, 0 or 1, tells apart two that are in
// use at once. It lives as long as the thread, so that decoding allocates nothing.
template <class T>
T* scratch(size_t n, int which) {
    thread_local std::vector<T> buffers[2];
    if (buffers[which].size() < n) buffers[which].resize(n);
    return buffers[which].data();
}

struct alignas(64) CacheLine {
    uint8_t bytes[64];
};
inline uint8_t* cache_lines(size_t nbytes, int which) {  // `nbytes`: whole lines
    return scratch<CacheLine>(nbytes / sizeof(CacheLine), which)->bytes;
}

// Whole cache lines. A larger request replaces the memory, and loses what was in it. Large buffers
// are huge pages: rows of results lie pages apart.
class Buffer {
  public:
    uint8_t* of(size_t nbytes) {
        if (nbytes <= size_) return data_;
        release();
        if (nbytes < kHugePage) {
            small_.reset(static_cast<uint8_t*>(::operator new(nbytes, std::align_val_t(64))));
            data_ = small_.get();
        } else {
            large_ = std::make_unique<Arena>((nbytes + kHugePage - 1) / kHugePage * kHugePage);
            data_ = large_->take(nbytes);
        }
        size_ = nbytes;
        return data_;
    }
    size_t size() const { return size_; }
    void release() { small_.reset(), large_.reset(), data_ = nullptr, size_ = 0; }

  private:
    struct Delete {
        void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<uint8_t, Delete> small_;
    std::unique_ptr<Arena> large_;
    uint8_t* data_ = nullptr;
    size_t size_ = 0;
};

// Cuts pieces off a stretch of memory; from null, only measures. Each begins on a cache line.
class Cutter {
  public:
    explicit Cutter(uint8_t* base) : base_(base) {}
    template <class T>
    T* take(int64_t n) {
        T* at = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ += (static_cast<size_t>(n) * sizeof(T) + 63) / 64 * 64;
        return at;
    }
    size_t used() const { return used_; }

  private:
    uint8_t* base_;
    size_t used_ = 0;
};

}  // namespace starcoder
