// One pool of threads for the whole process; nothing else knows that there are several.
//
// Our own rather than OpenMP's: no runtime to ship, the same on macOS, it survives fork(), and it
// sleeps when idle, so that a waiting server leaves the machine to others.
#pragma once

#include <cstdint>
#include <functional>

namespace starcoder {

void set_n_threads(int n);  // 1 or more; takes effect with the next call
int n_threads();

// Calls f(begin, end) on disjoint ranges that cover 0 .. n: one contiguous range a thread.
void parallel_for(int64_t n, const std::function<void(int64_t, int64_t)>& f);

// The same in pieces of `grain`, each taken by whichever thread is free: for work of uneven cost.
void parallel_pieces(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

}  // namespace starcoder
