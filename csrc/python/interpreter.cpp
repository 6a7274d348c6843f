#include "python/interpreter.h"

#include <nanobind/nanobind.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

namespace starcoder {

namespace {

std::atomic<int> n_unlocked{0};  // `Unlocked`s whose threads will ask for the lock again
std::atomic<bool> is_closing{false};
std::atomic<unsigned long> main_thread{0}, closing_thread{0};

thread_local Unlocked* innermost = nullptr;
thread_local int depth = 0;  // how many there are of this thread

bool must_not_return() { return is_closing && PyThread_get_thread_ident() != closing_thread; }

// The child of a fork has the one thread that forked.
[[maybe_unused]] const int forking = pthread_atfork(nullptr, nullptr, [] {
    n_unlocked = depth;
    main_thread = PyThread_get_thread_ident();
});

}  // namespace

Unlocked::Unlocked() : outer_(innermost) {
    ++n_unlocked, ++depth;
    innermost = this;
    thread_ = PyEval_SaveThread();
}

Unlocked::~Unlocked() {
    innermost = outer_;
    --depth;
    if (must_not_return()) {
        --n_unlocked;
        for (;;) pause();
    }
    PyEval_RestoreThread(thread_);
    --n_unlocked;
}

void hear_python() {
    if (must_not_return()) throw std::runtime_error("the process ends");
    if (!innermost || PyThread_get_thread_ident() != main_thread) return;
    PyEval_RestoreThread(innermost->thread_);
    const bool raised = PyErr_CheckSignals() != 0;
    std::exception_ptr error;
    if (raised) error = std::make_exception_ptr(nanobind::python_error());
    innermost->thread_ = PyEval_SaveThread();
    if (raised) std::rethrow_exception(error);
}

void close_core() {
    closing_thread = PyThread_get_thread_ident();
    is_closing = true;
    PyThreadState* thread = PyEval_SaveThread();
    while (n_unlocked > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    PyEval_RestoreThread(thread);
}

void set_main_thread(unsigned long ident) { main_thread = ident; }

}  // namespace starcoder
