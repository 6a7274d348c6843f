// Large stretches of memory, straight from the system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace starcoder {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Which pages an arena begins with. `Quick`: huge pages until a fault takes over 1 ms. Under
// free-page reporting the host has taken back free 2 MB ranges; faulting one in costs 5 ms (1B q4_0
// loads in 1.2 s instead of 0.5). It leaves shorter free ranges, from which small pages come.
enum class Pages { Huge, Quick, Small };

// Fresh zeroed memory in huge pages, where the system has them: fewer faults while packing, fewer
// TLB misses while decoding. Small pages can be collapsed to huge ones later.
class Arena {
  public:
    explicit Arena(size_t nbytes, Pages pages = Pages::Huge);  // std::bad_alloc: no room for it
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    uint8_t* take(size_t nbytes);  // null: no room

    bool has_small_pages() const { return small_ != nullptr; }

    // Makes one huge page of what was taken; its contents stay, and may be read meanwhile. False:
    // none is left to make, or the system does not make them.
    bool collapse();

  private:
    void probe(uint8_t* begin);

    uint8_t *map_, *first_, *next_, *end_;
    uint8_t* small_ = nullptr;  // from here on pages are small; null: none is
    bool quick_;                // pages are timed, and none was slow yet
};

}  // namespace starcoder
