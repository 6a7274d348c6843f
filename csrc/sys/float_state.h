// The floating-point environment of the core: rounding to nearest, numbers below 2^-126 kept.
//
// A thread inherits it from the thread that starts it, and a library compiled with -ffast-math
// changes it when it is loaded; results must not depend on that.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cstdint>

namespace starcoder {

class FloatState {
  public:
    FloatState() : before_(get()) { set(kDefault); }
    ~FloatState() { set(before_); }
    FloatState(const FloatState&) = delete;
    FloatState& operator=(const FloatState&) = delete;

  private:
#if defined(__x86_64__)
    using Word = uint32_t;
    static constexpr Word kDefault = 0x1f80;  // all exceptions masked
    static Word get() { return _mm_getcsr(); }
    static void set(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
    using Word = uint64_t;
    static constexpr Word kDefault = 0;
    static Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#else
    using Word = int;
    static constexpr Word kDefault = 0;
    static Word get() { return 0; }
    static void set(Word) {}
#endif
    Word before_;
};

}  // namespace starcoder
