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
constexpr int kFewTokens = 8;    // 16 integer and 8 float sums, 2 weights: 26
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
inline I pair_words(I high, I low) {
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
}
inline I load_words(const int16_t* p) { return _mm512_loadu_si512(p); }
inline I pack_words(I a, I b) { return _mm512_packs_epi32(a, b); }
inline I set_two(const int32_t* p, int) {
    int64_t two;
    __builtin_memcpy(&two, p, 8);
    return _mm512_set1_epi64(two);
}
inline I dot_words(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }

inline void store_bytes(int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}
inline void store_in_turn(int8_t* p, I a, I b) {
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

namespace starcoder {
namespace {

// Cooper Lake, Sapphire Rapids and Zen 4 multiply pairs of bf16, Ice Lake does not: these functions
// have the instruction, and the CPU is asked before they get into the table. For every lane it is
// fma(first, first', fma(second, second', acc)), as measured with 2,000,000 random numbers.
#define WITH_PAIRS __attribute__((target("avx512bf16")))

WITH_PAIRS inline F dot2(F acc, B a, B b) {
    return _mm512_dpbf16_ps(acc, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b));
}

// `Asks` for the weights that are read next.
template <int T, bool Asks>
WITH_PAIRS void pair_tile(const uint8_t* group, int64_t n_pairs, const uint16_t* x, float* acc) {
    F sum[2][T];
    EACH (t, T) sum[0][t] = sum[1][t] = set(0.0f);
    for (int64_t i = 0; i < n_pairs; ++i) {
        const uint8_t* lines = group + 2 * 64 * i;
        if constexpr (Asks)
            for (int p = 0; p < 2; ++p) prefetch_far(lines + 64 * p);
        const B w[2] = {load_bytes(lines), load_bytes(lines + 64)};
        EACH (t, T) {
            const B a = set_four(reinterpret_cast<const int8_t*>(x + t * kGroup + 2 * i));
            sum[0][t] = dot2(sum[0][t], w[0], a);
            sum[1][t] = dot2(sum[1][t], w[1], a);
        }
    }
    EACH (t, T)
        for (int p = 0; p < 2; ++p) {
            float* to = acc + t * kStripRows + W * p;
            store(to, add(load(to), sum[p][t]));
        }
}

template <int T, bool First>
WITH_PAIRS void pair_tiles(const uint8_t* group, int64_t n_pairs, const uint16_t* x, int64_t n,
                           float* acc) {
    if constexpr (T > 1)
        if (n < T) return pair_tiles<T - 1, First>(group, n_pairs, x, n, acc);
    if (First && !(T <= kFollowedFloats && follows_streams))
        pair_tile<T, true>(group, n_pairs, x, acc);
    else
        pair_tile<T, false>(group, n_pairs, x, acc);
    int64_t t = T;
    for (; t + T <= n; t += T)
        pair_tile<T, false>(group, n_pairs, x + t * kGroup, acc + t * kStripRows);
    if constexpr (T > 1)
        if (t < n)
            pair_tiles<T - 1, false>(group, n_pairs, x + t * kGroup, n - t, acc + t * kStripRows);
}

WITH_PAIRS void dot_pairs(const uint8_t* group, int64_t n_pairs, const uint16_t* x, int64_t n,
                          float* acc) {
    pair_tiles<kFloatTileTokens, true>(group, n_pairs, x, n, acc);
}

// The instruction takes numbers below 2^-126 for 0 of their sign, as `round_bf16` does.
WITH_PAIRS void round_bf16_packed(const float* x, int64_t k, uint16_t* to) {
    int64_t i = 0;
    for (; i + W <= k; i += W)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                            __builtin_bit_cast(__m256i, _mm512_cvtneps_pbh(load(x + i))));
    round_bf16(x + i, k - i, to + i);
}

// In place: what is written lies behind what is still to be read.
void round_pairs_packed(float* x, int64_t n) {
    round_bf16_packed(x, n, reinterpret_cast<uint16_t*>(x));
}

inline const int8_t* pairs_of(const float* row, int64_t first) {
    return reinterpret_cast<const int8_t*>(row) + 2 * first;
}

template <int P, int H, bool Asks>
WITH_PAIRS void score_pairs_tile(const float* queries, int64_t d, const uint16_t* const* keys,
                                 Ahead* ahead, float* out, int64_t stride) {
    F acc[P][H];
    EACH (p, P)
        EACH (h, H) acc[p][h] = set(0.0f);
    for (int64_t i = 0; i < d; i += 2) {
        if constexpr (Asks) ahead->step();
        B key[P];
        EACH (p, P) key[p] = load_bytes(reinterpret_cast<const uint8_t*>(keys[p] + 16 * i));
        EACH (h, H) {
            const B query = set_four(pairs_of(queries + h * d, i));
            EACH (p, P) acc[p][h] = dot2(acc[p][h], key[p], query);
        }
    }
    EACH (p, P)
        EACH (h, H) store(out + h * stride + p * W, acc[p][h]);
}

void score_pairs_packed(const float* queries, int64_t h, int64_t d, const uint16_t* const* keys,
                        int64_t n_blocks, Ahead* ahead, float*, float* out, int64_t stride) {
    in_vectors<kTileKeys>(n_blocks, [&](auto blocks, int64_t b) {
        in_tiles<kTileHeads>(h, [&](auto heads, int64_t i) {
            (ahead ? score_pairs_tile<blocks, heads, true>
                   : score_pairs_tile<blocks, heads, false>)(queries + i * d, d, keys + b, ahead,
                                                             out + i * stride + b * W, stride);
        });
    });
}

// Values from dimension v on, in blocks of 16 positions.
template <int P, int H, bool Asks>
WITH_PAIRS void mix_pairs_tile(const float* weights, int64_t stride, int64_t key, int64_t valid,
                               int64_t d, const uint16_t* const* values, int64_t v, Ahead* ahead,
                               float* acc) {
    F sum[P][H];
    EACH (h, H)
        EACH (p, P) sum[p][h] = load(acc + h * d + p * W);
    for (int64_t j = 0; j < valid; j += 2) {
        if constexpr (Asks) ahead->step();
        const uint16_t* pairs = values[j / 16] + j % 16 * d + 2 * v;
        B value[P];
        EACH (p, P) value[p] = load_bytes(reinterpret_cast<const uint8_t*>(pairs + 2 * p * W));
        if (j + 1 == valid)  // the second is not to be seen
            EACH (p, P) value[p] = _mm512_and_si512(value[p], set_int(0xffff));
        EACH (h, H) {
            const B weight = set_four(pairs_of(weights + h * stride, key + j));
            EACH (p, P) sum[p][h] = dot2(sum[p][h], value[p], weight);
        }
    }
    EACH (h, H)
        EACH (p, P) store(acc + h * d + p * W, sum[p][h]);
}

void mix_pairs_packed(const float* weights, int64_t stride, int64_t key, int64_t valid, int64_t h,
                      int64_t d, const uint16_t* const* values, Ahead* ahead, float*, float* acc) {
    in_vectors<kTileKeys>(d / W, [&](auto vectors, int64_t v) {
        in_tiles<kTileHeads>(h, [&](auto heads, int64_t i) {
            (ahead ? mix_pairs_tile<vectors, heads, true>
                   : mix_pairs_tile<vectors, heads, false>)(weights + i * stride, stride, key,
                                                            valid, d, values, v * W, ahead,
                                                            acc + i * d + v * W);
        });
    });
}

WITH_PAIRS Products bf16_peak(const uint16_t* w, const uint16_t* x, int64_t rounds) {
    const B a = load_bytes(reinterpret_cast<const uint8_t*>(w));
    const B b = load_bytes(reinterpret_cast<const uint8_t*>(x));
    FloatSums sums;
    for (int64_t i = 0; i < rounds; ++i)
        EACH (v, kTileVectors)
            EACH (t, kFloatTileTokens) sums.sum[v][t] = dot2(sums.sum[v][t], a, b);
    return {rounds * FloatSums::kChains * W * 2, sums.total()};
}

// With the instruction for pairs of bf16. Intel's takes twice as long as the two f32 instructions
// that give the same bits: one in two cycles on Sapphire Rapids, and four of the others. On Zen 4
// it is the other way round. So Intel's table has it for the peak alone.
constexpr Isa with_bf16_peak(Isa table) {
    table.bf16_peak = bf16_peak;
    return table;
}

constexpr Isa with_pairs(Isa table) {
    table.dot_pairs = dot_pairs;
    table.round_bf16 = round_bf16_packed;
    table.round_pairs = round_pairs_packed;
    table.score_pairs = score_pairs_packed;
    table.mix_pairs = mix_pairs_packed;
    return with_bf16_peak(table);
}

}  // namespace

extern const Isa isa_avx512, isa_avx512_bf16_peak, isa_avx512_bf16;
constinit const Isa isa_avx512 = kTable;
constinit const Isa isa_avx512_bf16_peak = with_bf16_peak(kTable);
constinit const Isa isa_avx512_bf16 = with_pairs(kTable);
}  // namespace starcoder
