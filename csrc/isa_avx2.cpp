// AVX2 with FMA and F16C: Haswell, Zen 1 and later. Eight lanes, 16 registers.
#include "words_avx2.h"

namespace starcoder {
namespace {

constexpr const char* kName = "avx2";
constexpr bool kSignedBytes = true;
constexpr int kTileVectors = 1;
constexpr int kTileTokens = 4;  // 4 integer and 4 float sums, 1 weight, 1 broadcast, 3 for dot4
constexpr int kFewTokens = 4;
constexpr int kFloatTileTokens = 12;
constexpr int kTileHeads = 8;
constexpr int kTileKeys = 1;

inline B lookup(B b) { return lookup_signed(b); }

// vpmaddubsw adds pairs of products in 16 bits: exact for codes up to 127 (2 * 127 * 127 = 32258).
// Signed codes lend their sign to the activation first: |code| <= 128, and 2 * 128 * 127 = 32512.
template <bool Bytes>
inline I dot4(I acc, B codes, B a) {
    const B pairs = Bytes ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(a, codes))
                          : _mm256_maddubs_epi16(codes, a);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

}  // namespace
}  // namespace starcoder

#include "loops.h"

namespace starcoder {
extern const Isa isa_avx2;
const Isa isa_avx2 = kTable;
}  // namespace starcoder
