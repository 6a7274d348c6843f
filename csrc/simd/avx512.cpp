// AVX-512 with VNNI: Zen 4 and later, Ice Lake and later. Sixteen lanes, 32 registers.
#include <immintrin.h>

#include "simd/isa.h"

namespace starcoder {
namespace {

constexpr const char* kName = "avx512";
constexpr bool kSignedBytes = false;
constexpr int W = 16;
constexpr int kTileVectors = 2;  // two weight vectors share each broadcast
constexpr int kTileTokens = 6;   // 12 integer and 12 float sums, 2 weights, 1 broadcast: 27 of 32
constexpr int kGemvTokens = 8;   // 16 integer and 8 float sums, 2 weights: 26
constexpr int kFloatTileTokens = 12;
constexpr int kTileHeads = 8;
constexpr int kTileKeys = 2;

using F = __m512;
using I = __m512i;
using B = __m512i;

inline F set(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F abs(F x) { return _mm512_abs_ps(x); }
inline F select_less(F a, F b, F then, F otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
}
inline F zero_where_less(F value, F x, F limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), value);
}

inline I set_int(int32_t x) { return _mm512_set1_epi32(x); }
inline I load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
inline void store_int(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
inline I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
inline I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
inline int32_t max_lane(I x) { return _mm512_reduce_max_epi32(x); }
inline int32_t sum_lanes(I x) { return _mm512_reduce_add_epi32(x); }
inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }
inline I round(F x) { return _mm512_cvtps_epi32(x); }
inline I magnitude_bits(F x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}
inline F times_power_of_two(F x, I n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(n, 23)));
}
inline I pair_int16(I high, I low) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}
inline I load_int16(const int16_t* p) { return _mm512_loadu_si512(p); }
inline I pack_int16(I a, I b) { return _mm512_packs_epi32(a, b); }
inline I set_two(const int32_t* p, int) {
    int64_t two;
    __builtin_memcpy(&two, p, 8);
    return _mm512_set1_epi64(two);
}
inline I dot_int16(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }

inline void store_bytes(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}
inline void store_interleaved(int8_t* p, I a, I b) {
    const __m128i x = _mm512_cvtepi32_epi8(a), y = _mm512_cvtepi32_epi8(b);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(x, y));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + 1, _mm_unpackhi_epi32(x, y));
}
inline I load_int8(const int8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline F load_half(const half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline void store_half(half* p, F x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F load_bf16(const uint16_t* p, bool odd) {
    const I pairs = _mm512_loadu_si512(p);
    return _mm512_castsi512_ps(odd ? _mm512_and_si512(pairs, _mm512_set1_epi32(-65536))
                                   : _mm512_slli_epi32(pairs, 16));
}

inline B load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_codes(uint8_t* p, B b) { _mm512_storeu_si512(p, b); }
inline B set_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
inline B set_eight(const int8_t* p, int) {
    int64_t eight;
    __builtin_memcpy(&eight, p, 8);
    return _mm512_set1_epi64(eight);
}
inline B low_nibbles(B b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }
inline B high_nibbles(B b) { return low_nibbles(_mm512_srli_epi16(b, 4)); }
inline B flip_signs(B b) { return _mm512_xor_si512(b, _mm512_set1_epi8(-128)); }
inline B either(B a, B b) { return _mm512_or_si512(a, b); }
template <int At, int Mask>
inline B to_bit_4(B b) {  // shifting 16 bits at a time is enough: Mask drops the neighbors' bits
    const B moved = At < 4 ? _mm512_slli_epi16(b, At < 4 ? 4 - At : 0)
                           : _mm512_srli_epi16(b, At < 4 ? 0 : At - 4);
    return _mm512_and_si512(moved, _mm512_set1_epi8(Mask));
}
inline B lookup(B b) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kCodebookIQ4NL));
    const B codes = _mm512_broadcast_i32x4(_mm_xor_si128(values, _mm_set1_epi8(-128)));
    return _mm512_shuffle_epi8(codes, b);
}

constexpr int at_once(int) { return 1; }

template <bool Bytes, int N>
inline I dot4(I acc, const B (&codes)[N], const B (&a)[N]) {
    for (int n = 0; n < N; ++n) acc = _mm512_dpbusd_epi32(acc, codes[n], a[n]);
    return acc;
}

}  // namespace
}  // namespace starcoder

#include "simd/loops.h"
//
#include "simd/avx512_bf16.h"

namespace starcoder {
namespace {

// With the instruction for pairs of bf16. On Sapphire Rapids it takes two cycles, in which four of
// the f32 instructions are done, two of which give the same bits; on Zen 4 it is the faster way. So
// Intel's table has it for the probe of its peak alone.
constexpr Isa with_bf16_peak(Isa table) {
    table.bf16_peak = bf16_peak;
    return table;
}

constexpr Isa with_pairs(Isa table) {
    table.gemm_bf16 = gemm_bf16;
    table.round_bf16 = round_bf16_packed;
    table.round_pairs = round_pairs_packed;
    table.scores_bf16 = scores_bf16_packed;
    table.weighted_values_bf16 = weighted_values_bf16_packed;
    return with_bf16_peak(table);
}

}  // namespace

extern const Isa isa_avx512, isa_avx512_bf16_peak, isa_avx512_bf16;
constinit const Isa isa_avx512 = kTable;
constinit const Isa isa_avx512_bf16_peak = with_bf16_peak(kTable);
constinit const Isa isa_avx512_bf16 = with_pairs(kTable);
}  // namespace starcoder
