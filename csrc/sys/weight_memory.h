// Where packed weights lie, and the policy of their pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "sys/arena.h"

namespace starcoder {

// `nbytes`, a multiple of 64, zeroed, on a cache line.
std::shared_ptr<uint8_t> weight_memory(size_t nbytes);  // std::bad_alloc: there is none

// Weights may begin with small pages (arena.h says when), and then decode at 0.80 to 0.97 of the
// speed. This gives them huge pages later. Optional: without it nothing but that speed is lost.
class HugePages {
  public:
    // Spends about so many seconds on it. False: all weights have what they can have.
    bool collapse(double seconds);

    // Models have run for so many seconds. To collapse 700 MB takes 0.9 to 1.6 s, as much as short
    // answers lose without; so after ten seconds of running it spends a tenth of the time.
    void after_run(double seconds);

    // From now on all weights begin with small pages, or again only where huge ones come slowly.
    // For tests: the bits of no result depend on it.
    void begin_small(bool always);

  private:
    friend std::shared_ptr<uint8_t> weight_memory(size_t nbytes);

    std::vector<std::weak_ptr<Arena>> arenas_;  // matrices keep them alive
    double credit_ = 0;                         // seconds; a page takes longer than most calls give
    double ran_ = 0;                            // seconds
    bool always_small_ = false;
};

HugePages& huge_pages();  // of the process; calls from several threads take turns

}  // namespace starcoder
