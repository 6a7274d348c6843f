// Python's interpreter while the core computes: its lock is released, Ctrl-C is heard, and it may
// end.
#pragma once

#include <Python.h>

#include "sys/float_state.h"

namespace starcoder {

// For as long as a call of the core lasts: others may run Python, and arithmetic has the core's own
// floating-point environment.
class Unlocked {
  public:
    Unlocked();
    // At the end of the process a thread that is not the last one waits here for ever: it would be
    // ended by unwinding, through code that cannot bear it.
    ~Unlocked();
    Unlocked(const Unlocked&) = delete;
    Unlocked& operator=(const Unlocked&) = delete;

  private:
    friend void hear_python();
    PyThreadState* thread_;
    Unlocked* outer_;
    FloatState state_;
};

// What a long call does now and then (threads.h): throws what the handler of a signal raised, or
// ends the call of a thread whose process ends.
void hear_python();

// To be called at the end of the process: ends the calls of all other threads, waits for them, and
// lets none of them into Python again.
void close_core();

// The thread in which Python runs the handlers of signals.
void set_main_thread(unsigned long ident);

}  // namespace starcoder
