// AVX2 with FMA and F16C: Haswell, Zen 1 and later. Eight lanes, 16 registers.
#include "simd/avx2_vectors.h"

namespace starcoder {
namespace {

constexpr const char* kName = "avx2";
constexpr bool kSignedBytes = true;
constexpr int kTileVectors = 1;
constexpr int kTileTokens = 4;  // 4 integer and 4 float sums, 4 weights, 1 broadcast, 3 for dot4
constexpr int kGemvTokens = 4;
constexpr int kFloatTileTokens = 12;
constexpr int kTileHeads = 8;
constexpr int kTileKeys = 1;

inline B lookup(B b) { return lookup_signed(b); }
inline I dot_int16(I acc, I a, I b) { return add_int(acc, _mm256_madd_epi16(a, b)); }

// Sums of products stay in 16 bits as long as they are exact: 8 * 31 * 127 = 31496 with codes of 5
// bits, 4 * 63 * 127 = 32004 with 6.
constexpr int at_once(int bits) { return bits <= 5 ? 4 : bits == 6 ? 2 : 1; }

// vpmaddubsw adds pairs of products in 16 bits: exact for codes up to 127 (2 * 127 * 127 = 32258).
// Signed codes lend their sign to the activation first: |code| <= 128, and 2 * 128 * 127 = 32512.
template <bool Bytes>
inline B pairs_of(B codes, B a) {
    return Bytes ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(a, codes))
                 : _mm256_maddubs_epi16(codes, a);
}

template <bool Bytes, int N>
inline I dot4(I acc, const B (&codes)[N], const B (&a)[N]) {
    B pairs = pairs_of<Bytes>(codes[0], a[0]);
    for (int n = 1; n < N; ++n) pairs = _mm256_add_epi16(pairs, pairs_of<Bytes>(codes[n], a[n]));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace
}  // namespace starcoder

#include "simd/loops.h"

namespace starcoder {
extern const Isa isa_avx2;
constinit const Isa isa_avx2 = kTable;
}  // namespace starcoder
