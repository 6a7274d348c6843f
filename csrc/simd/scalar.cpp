// One lane, plain C++: what every other instruction set must equal, and what each vector operation
// means.
#include <cmath>
#include <cstring>

#include "simd/isa.h"

namespace starcoder {
namespace {

constexpr const char* kName = "scalar";
constexpr bool kSignedBytes = false;
constexpr int W = 1;                 // lanes
constexpr int kTileVectors = 1;      // a tile of dot products: vectors of rows,
constexpr int kTileTokens = 1;       // times tokens with 8-bit weights,
constexpr int kGemvTokens = 4;       // times tokens straight from a panel,
constexpr int kFloatTileTokens = 1;  // times tokens with float weights
constexpr int kTileHeads = 1;        // heads that share one pass over keys or values
constexpr int kTileKeys = 1;  // vectors of keys, or of values, that share each load of a query

using F = float;
using I = int32_t;
struct B {
    uint8_t lane[4];
};

F set(float x) { return x; }
F load(const float* p) { return *p; }
void store(float* p, F x) { *p = x; }
F add(F a, F b) { return a + b; }
F sub(F a, F b) { return a - b; }
F mul(F a, F b) { return a * b; }
F div(F a, F b) { return a / b; }
F fma(F a, F b, F c) { return std::fma(a, b, c); }  // a b + c, rounded once
// NaN if b is; if a is, NaN or b.
F min(F a, F b) { return a < b ? a : b; }
F max(F a, F b) { return a > b ? a : b; }
F abs(F x) { return std::fabs(x); }
F select_less(F a, F b, F then, F otherwise) { return a < b ? then : otherwise; }
F zero_where_less(F value, F x, F limit) { return x < limit ? 0.0f : value; }

I set_int(int32_t x) { return x; }
I load_int(const int32_t* p) { return *p; }
void store_int(int32_t* p, I x) { *p = x; }
I add_int(I a, I b) { return a + b; }
I max_int(I a, I b) { return a > b ? a : b; }
int32_t max_lane(I x) { return x; }
int32_t sum_lanes(I x) { return x; }
F to_float(I x) { return static_cast<float>(x); }
I round(F x) {  // ties to even; what NaN becomes may differ, but its last 9 bits are 0
    return x == x ? static_cast<I>(std::nearbyint(x)) : 0;
}
I magnitude_bits(F x) { return __builtin_bit_cast(I, x) & 0x7fffffff; }
F times_power_of_two(F x, I n) {  // n such that the result is a normal number
    return __builtin_bit_cast(F, __builtin_bit_cast(I, x) + n * (1 << 23));
}

// Two numbers of 16 bits in a lane, for int16 scales. `pack_int16` turns sums of interleaved
// sub-blocks, in two vectors, into lanes with both sums of a row. Where a vector is one lane, it
// holds sub-block h; elsewhere h does not matter.
I pair_int16(I high, I low) { return int16_pair(high, low); }
I load_int16(const int16_t* p) { return pair_int16(p[1], p[0]); }
I pack_int16(I a, I b) { return pair_int16(b, a); }
I set_two(const int32_t* p, int h) { return p[h]; }
I dot_int16(I acc, I a, I b) {
    const auto low = [](I x) { return static_cast<I>(static_cast<int16_t>(x)); };
    return acc + (a >> 16) * (b >> 16) + low(a) * low(b);
}

void store_bytes(int8_t* p, I x) { *p = static_cast<int8_t>(x); }  // |x| <= 127
void store_interleaved(int8_t* p, I a, I b) {                      // of two sub-blocks
    store_bytes(p, a);
    store_bytes(p + 4, b);
}
I load_int8(const int8_t* p) { return *p; }

F load_half(const half* p) { return half_to_float(*p); }
void store_half(half* p, F x) { *p = float_to_half(x); }
F load_bf16(const uint16_t* p, bool odd) { return bf16_to_float(p[odd]); }  // of W pairs

B load_bytes(const uint8_t* p) {
    B b;
    std::memcpy(b.lane, p, 4);
    return b;
}
void store_codes(uint8_t* p, B b) { std::memcpy(p, b.lane, 4); }
B set_four(const int8_t* p) { return load_bytes(reinterpret_cast<const uint8_t*>(p)); }
B set_eight(const int8_t* p, int h) { return set_four(p + 4 * h); }  // as set_two
B low_nibbles(B b) {
    for (uint8_t& x : b.lane) x &= 15;
    return b;
}
B high_nibbles(B b) {
    for (uint8_t& x : b.lane) x >>= 4;
    return b;
}
B flip_signs(B b) {
    for (uint8_t& x : b.lane) x ^= 0x80;
    return b;
}
B either(B a, B b) {
    for (int i = 0; i < 4; ++i) a.lane[i] |= b.lane[i];
    return a;
}
template <int At, int Mask>
B to_bit_4(B b) {  // bit At of each byte moves to bit 4; of the result, only Mask is kept
    for (uint8_t& x : b.lane) x = static_cast<uint8_t>((x << 4 >> At) & Mask);
    return b;
}
B lookup(B b) {  // nibbles -> IQ4_NL's values, as codes of 8 bits
    for (uint8_t& x : b.lane) x = static_cast<uint8_t>(kCodebookIQ4NL[x] + 128);
    return b;
}

// Vectors that `dot4` takes at once, with codes of so many bits.
constexpr int at_once(int) { return 1; }

// acc + the sums of four products each: codes, unsigned, times activations, signed. `Bytes`: the
// codes may be above 127 (and are signed if kSignedBytes).
template <bool Bytes, int N>
I dot4(I acc, const B (&codes)[N], const B (&a)[N]) {
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < 4; ++i) acc += codes[n].lane[i] * static_cast<int8_t>(a[n].lane[i]);
    return acc;
}

}  // namespace
}  // namespace starcoder

#include "simd/loops.h"

namespace starcoder {
extern const Isa isa_scalar;
constinit const Isa isa_scalar = kTable;
}  // namespace starcoder
