#include "types/floats.h"

namespace starcoder {

float half_to_float(half h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
    const uint32_t exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
    if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
    }
    const uint32_t wide = exponent == 31 ? 255 : exponent + 112;
    return __builtin_bit_cast(float, sign | wide << 23 | mantissa << 13);
}

half float_to_half(float f) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, f), magnitude = bits & 0x7fffffff;
    const auto sign = static_cast<half>((bits >> 16) & 0x8000);
    if (magnitude > 0x7f800000)  // NaN, made quiet
        return static_cast<half>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    if (magnitude >= 0x477ff000) return sign | 0x7c00;  // rounds beyond 65504
    if (magnitude < 0x38800000) {                       // subnormal: let the adder round at 2^-24
        const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        return static_cast<half>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000));
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return static_cast<half>(sign | ((magnitude - 0x38000000 + 0xfff + odd) >> 13));
}

}  // namespace starcoder
