// What this machine can do at best, with nothing around it: what `starcoder bench` compares with.
#pragma once

#include <cstdint>
#include <memory>

namespace starcoder {

enum class Arithmetic : int { Int8 = 0, BF16 = 1, F32 = 2 };

struct Peak {
    double per_second;  // multiply-adds of all threads together; 0: no instruction for it
    double product;     // the mean of the products, which is 15
};
Peak peak(Arithmetic kind, double seconds);

struct Reading {
    double per_second;  // bytes, by all threads together, in all passes
    uint64_t bits;      // all words or-ed together: what memory was filled with
};
// Memory to be read: `nbytes`, whole lines of 64, filled with words `bits`. Throws std::bad_alloc.
class Memory {
  public:
    Memory(int64_t nbytes, uint64_t bits);
    Reading read(int passes) const;

  private:
    int64_t n_lines_;
    std::shared_ptr<uint8_t> data_;
};

}  // namespace starcoder
