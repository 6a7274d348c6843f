// Large stretches of memory, straight from the system.
#pragma once

#include <cstddef>
#include <cstdint>

namespace starcoder {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Which pages a chunk begins with. `Quick`: huge ones, until one comes slowly. A virtual machine
// may have given free memory back to its host, in stretches of this size, and waits for each small
// page of them: 5 ms for a huge page, 1.2 s and more to load a 1B model that takes 0.5 with small
// pages. Shorter stretches it kept.
enum class Pages { Huge, Quick, Small };

// Fresh zeroed memory in huge pages, where the system has them: fewer faults while packing, fewer
// misses of the address cache while decoding. Of pages that are small `gather` makes huge ones
// later.
class Chunk {
  public:
    explicit Chunk(size_t nbytes, Pages pages = Pages::Huge);  // std::bad_alloc: no room for it
    ~Chunk();
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;

    uint8_t* take(size_t nbytes);  // null: no room

    bool is_scattered() const { return small_ != nullptr; }  // has small pages

    // Makes one huge page of what was taken; its contents stay, and may be read meanwhile. False:
    // none is left to make, or the system does not make them.
    bool gather();

  private:
    void probe(uint8_t* begin);

    uint8_t *map_, *first_, *next_, *end_;
    uint8_t* small_ = nullptr;  // from here on pages are small; null: none is
    bool quick_;                // pages are timed, and none was slow yet
};

}  // namespace starcoder
