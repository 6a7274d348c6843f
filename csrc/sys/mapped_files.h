// Files that are truncated while they are mapped. Reading a page beyond a file's new end raises
// SIGBUS, which would end the process; here the page becomes zeros instead, and the owner of the
// mapping can ask whether that happened.
#pragma once

#include <cstddef>

namespace starcoder {

// From now on reading in this mapping of a file never ends the process. Returns its number.
int watch_mapping(const void* start, size_t length);

// Whether bytes were read there that the file did not have, or that the disk could not give.
bool lost_bytes(int mapping);

// To be called before the mapping goes; the number may be given out again.
void unwatch_mapping(int mapping);

}  // namespace starcoder
