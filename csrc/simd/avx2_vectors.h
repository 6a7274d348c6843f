// Operations on vectors of 32 bytes, for the instruction sets that build on AVX2, FMA and F16C.
#pragma once

#include <immintrin.h>

#include "simd/isa.h"

namespace starcoder {
namespace {

constexpr int W = 8;

using F = __m256;
using I = __m256i;
using B = __m256i;

inline F set(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F abs(F x) { return _mm256_andnot_ps(set(-0.0f), x); }
inline F select_less(F a, F b, F then, F otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
inline F zero_where_less(F value, F x, F limit) {
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), value);
}

inline I set_int(int32_t x) { return _mm256_set1_epi32(x); }
inline I load_int(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_int(int32_t* p, I x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x); }
inline I add_int(I a, I b) { return _mm256_add_epi32(a, b); }
inline I max_int(I a, I b) { return _mm256_max_epi32(a, b); }
template <class Op>
inline int32_t fold_lanes(I x, Op op) {
    __m128i four = op(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    four = op(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(op(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline int32_t max_lane(I x) {
    return fold_lanes(x, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
}
inline int32_t sum_lanes(I x) {
    return fold_lanes(x, [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); });
}
inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }
inline I round(F x) { return _mm256_cvtps_epi32(x); }
inline I magnitude_bits(F x) {
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}
inline F times_power_of_two(F x, I n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
}
inline I pair_int16(I high, I low) {
    return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa);
}
inline I load_int16(const int16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline I pack_int16(I a, I b) { return _mm256_packs_epi32(a, b); }
inline I set_two(const int32_t* p, int) {
    int64_t two;
    __builtin_memcpy(&two, p, 8);
    return _mm256_set1_epi64x(two);
}

inline void store_bytes(int8_t* p, I x) {
    const I words = _mm256_packs_epi32(x, x), bytes = _mm256_packs_epi16(words, words);
    const int32_t low = _mm256_extract_epi32(bytes, 0), high = _mm256_extract_epi32(bytes, 4);
    __builtin_memcpy(p, &low, 4);
    __builtin_memcpy(p + 4, &high, 4);
}
inline void store_interleaved(int8_t* p, I a, I b) {
    const I words = _mm256_packs_epi32(a, b), bytes = _mm256_packs_epi16(words, words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 8), _mm256_extracti128_si256(bytes, 1));
}
inline I load_int8(const int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}

inline F load_half(const half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void store_half(half* p, F x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline F load_bf16(const uint16_t* p, bool odd) {
    const I pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_castsi256_ps(odd ? _mm256_and_si256(pairs, _mm256_set1_epi32(-65536))
                                   : _mm256_slli_epi32(pairs, 16));
}

inline B load_bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_codes(uint8_t* p, B b) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), b); }
inline B set_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
inline B set_eight(const int8_t* p, int) {
    int64_t eight;
    __builtin_memcpy(&eight, p, 8);
    return _mm256_set1_epi64x(eight);
}
inline B low_nibbles(B b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }
inline B high_nibbles(B b) { return low_nibbles(_mm256_srli_epi16(b, 4)); }
inline B flip_signs(B b) { return _mm256_xor_si256(b, _mm256_set1_epi8(-128)); }
inline B either(B a, B b) { return _mm256_or_si256(a, b); }
template <int At, int Mask>
inline B to_bit_4(B b) {  // shifting 16 bits at a time is enough: Mask drops the neighbors' bits
    const B moved = At < 4 ? _mm256_slli_epi16(b, At < 4 ? 4 - At : 0)
                           : _mm256_srli_epi16(b, At < 4 ? 0 : At - 4);
    return _mm256_and_si256(moved, _mm256_set1_epi8(Mask));
}
// The nibbles' values in IQ4_NL, signed.
inline B lookup_signed(B b) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodebookIQ4NL));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), b);
}

}  // namespace
}  // namespace starcoder
