// Floats of 16 bits, and numbers at any address.
//
// The conversions follow IEEE 754; those that CPUs have give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace starcoder {

using half = uint16_t;  // IEEE binary16, as bits

float half_to_float(half h);
half float_to_half(float f);  // to nearest, ties to even

inline float bf16_to_float(uint16_t h) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(h) << 16);
}

// Number i of a file's, which may begin at any byte.
template <class T>
T number_at(const void* data, int64_t i) {
    T number;
    std::memcpy(&number, static_cast<const uint8_t*>(data) + i * int64_t{sizeof(T)}, sizeof(T));
    return number;
}

}  // namespace starcoder
