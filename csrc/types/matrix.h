// A matrix of weights, ready to be multiplied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "types/table.h"

namespace starcoder {

struct PackedMatrix;  // packed.h

// A matrix (m, k), repacked. Made from rows as a file holds them; `data` is not needed afterwards.
// Copies share the weights. Throws std::bad_alloc.
class Matrix {
  public:
    Matrix(Type type, const void* data, int64_t n_rows, int64_t n_cols);

    Type type() const;
    int64_t n_rows() const;
    int64_t n_cols() const;
    size_t nbytes() const;  // in memory

    const PackedMatrix& packed() const { return *packed_; }  // what the operations read

  private:
    std::shared_ptr<const PackedMatrix> packed_;
};

// Bytes that a matrix takes in memory: whole strips and whole groups.
int64_t packed_bytes(Type type, int64_t n_rows, int64_t n_cols);

}  // namespace starcoder
