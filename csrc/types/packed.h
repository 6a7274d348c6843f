// What is inside a Matrix: strips of two panels (panels.h), group by group.
#pragma once

#include <memory>

#include "types/matrix.h"
#include "types/panels.h"

namespace starcoder {

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct PackedMatrix {
    Type type;
    int64_t n_rows, n_cols;
    int64_t n_strips, n_groups;
    int64_t group_bytes;  // of one panel
    size_t nbytes;
    std::shared_ptr<const uint8_t> data;
    const float* units;  // the unit of each row's int16 scales; null for other types

    int64_t strip_bytes() const { return n_groups * 2 * group_bytes; }

    // Group g (128 inputs) of panel `which`, 0 or 1, of a strip; of floats both panels are one, at
    // 0. A strip is read from front to back.
    const uint8_t* group(int64_t strip, int64_t g, int which = 0) const {
        return data.get() + strip * strip_bytes() + (g * 2 + which) * group_bytes;
    }
};

}  // namespace starcoder
