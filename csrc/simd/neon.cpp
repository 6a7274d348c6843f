// NEON with the dot product instructions (Armv8.2 and later: Apple M1, Graviton 2, Cortex-A76).
// Four lanes, 32 registers.
#include <arm_neon.h>

#include "simd/isa.h"

namespace starcoder {
namespace {

constexpr const char* kName = "neon";
constexpr bool kSignedBytes = true;
constexpr int W = 4;
constexpr int kTileVectors = 2;
constexpr int kTileTokens = 6;
constexpr int kGemvTokens = 4;
constexpr int kFloatTileTokens = 8;
constexpr int kTileHeads = 8;
constexpr int kTileKeys = 2;

using F = float32x4_t;
using I = int32x4_t;
using B = uint8x16_t;

inline F set(float x) { return vdupq_n_f32(x); }
inline F load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, F x) { vst1q_f32(p, x); }
inline F add(F a, F b) { return vaddq_f32(a, b); }
inline F sub(F a, F b) { return vsubq_f32(a, b); }
inline F mul(F a, F b) { return vmulq_f32(a, b); }
inline F div(F a, F b) { return vdivq_f32(a, b); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F min(F a, F b) { return vminq_f32(a, b); }
inline F max(F a, F b) { return vmaxq_f32(a, b); }
inline F abs(F x) { return vabsq_f32(x); }
inline F select_less(F a, F b, F then, F otherwise) {
    return vbslq_f32(vcltq_f32(a, b), then, otherwise);
}
inline F zero_where_less(F value, F x, F limit) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(value), vcltq_f32(x, limit)));
}

inline I set_int(int32_t x) { return vdupq_n_s32(x); }
inline I load_int(const int32_t* p) { return vld1q_s32(p); }
inline void store_int(int32_t* p, I x) { vst1q_s32(p, x); }
inline I add_int(I a, I b) { return vaddq_s32(a, b); }
inline I max_int(I a, I b) { return vmaxq_s32(a, b); }
inline int32_t max_lane(I x) { return vmaxvq_s32(x); }
inline int32_t sum_lanes(I x) { return vaddvq_s32(x); }
inline F to_float(I x) { return vcvtq_f32_s32(x); }
inline I round(F x) { return vcvtnq_s32_f32(x); }
inline I magnitude_bits(F x) {
    return vandq_s32(vreinterpretq_s32_f32(x), vdupq_n_s32(0x7fffffff));
}
inline F times_power_of_two(F x, I n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), vshlq_n_s32(n, 23)));
}
inline I pair_int16(I high, I low) { return vsliq_n_s32(low, high, 16); }
inline I load_int16(const int16_t* p) { return vreinterpretq_s32_s16(vld1q_s16(p)); }
inline I pack_int16(I a, I b) {
    return vreinterpretq_s32_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b)));
}
inline I set_two(const int32_t* p, int) {
    const int32x2_t two = vld1_s32(p);
    return vcombine_s32(two, two);
}
inline I dot_int16(I acc, I a, I b) {
    const int16x8_t p = vreinterpretq_s16_s32(a), q = vreinterpretq_s16_s32(b);
    return vaddq_s32(acc,
                     vpaddq_s32(vmull_s16(vget_low_s16(p), vget_low_s16(q)), vmull_high_s16(p, q)));
}

inline void store_bytes(int8_t* p, I x) {
    const int8x8_t bytes = vmovn_s16(vcombine_s16(vmovn_s32(x), vdup_n_s16(0)));
    vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(bytes), 0);
}
inline void store_interleaved(int8_t* p, I a, I b) {
    store_bytes(p, a);
    store_bytes(p + 4, b);
}
inline I load_int8(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}

inline F load_half(const half* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline void store_half(half* p, F x) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x))); }
inline F load_bf16(const uint16_t* p, bool odd) {
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p));
    return vreinterpretq_f32_u32(odd ? vandq_u32(pairs, vdupq_n_u32(0xffff0000))
                                     : vshlq_n_u32(pairs, 16));
}

inline B load_bytes(const uint8_t* p) { return vld1q_u8(p); }
inline void store_codes(uint8_t* p, B b) { vst1q_u8(p, b); }
inline B set_four(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpretq_u8_s32(vdupq_n_s32(four));
}
inline B set_eight(const int8_t* p, int) {
    const uint8x8_t eight = vreinterpret_u8_s8(vld1_s8(p));
    return vcombine_u8(eight, eight);
}
inline B low_nibbles(B b) { return vandq_u8(b, vdupq_n_u8(15)); }
inline B high_nibbles(B b) { return vshrq_n_u8(b, 4); }
inline B flip_signs(B b) { return veorq_u8(b, vdupq_n_u8(0x80)); }
inline B either(B a, B b) { return vorrq_u8(a, b); }
template <int At, int Mask>
inline B to_bit_4(B b) {
    return vandq_u8(vshlq_u8(b, vdupq_n_s8(4 - At)), vdupq_n_u8(Mask));  // right if negative
}
inline B lookup(B b) { return vreinterpretq_u8_s8(vqtbl1q_s8(vld1q_s8(kCodebookIQ4NL), b)); }

constexpr int at_once(int) { return 1; }

// Codes are below 128, or signed already: a signed dot product does for both.
template <bool Bytes, int N>
inline I dot4(I acc, const B (&codes)[N], const B (&a)[N]) {
    for (int n = 0; n < N; ++n)
        acc = vdotq_s32(acc, vreinterpretq_s8_u8(codes[n]), vreinterpretq_s8_u8(a[n]));
    return acc;
}

}  // namespace
}  // namespace starcoder

#include "simd/loops.h"

namespace starcoder {
extern const Isa isa_neon;
constinit const Isa isa_neon = kTable;
}  // namespace starcoder
