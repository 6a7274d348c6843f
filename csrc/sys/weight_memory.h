// Where packed weights lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace starcoder {

// `nbytes`, a multiple of 64, zeroed, on a cache line.
std::shared_ptr<uint8_t> weight_memory(size_t nbytes);  // std::bad_alloc: there is none

// Spends about so many seconds on huge pages for weights that began with small ones, chunk.h says
// why. False: all have what they can have.
bool gather_weights(double seconds);

// From now on all weights begin with small pages, or again only where huge ones come slowly. For
// tests: the bits of no result depend on it.
void scatter_weights(bool always);

}  // namespace starcoder
