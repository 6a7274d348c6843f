// AVX2 with VNNI: Alder Lake and later, Zen 5 laptops; also what AVX-512 machines have beside it.
#include "simd/avx2_vectors.h"

namespace starcoder {
namespace {

constexpr const char* kName = "avxvnni";
constexpr bool kSignedBytes = false;
constexpr int kTileVectors = 2;
constexpr int kTileTokens = 3;  // 6 integer and 6 float sums, 2 weights, 1 broadcast: 15 of 16
constexpr int kGemvTokens = 4;
constexpr int kFloatTileTokens = 6;
constexpr int kTileHeads = 8;
constexpr int kTileKeys = 1;

inline B lookup(B b) { return flip_signs(lookup_signed(b)); }
inline I dot_int16(I acc, I a, I b) { return _mm256_dpwssd_avx_epi32(acc, a, b); }

constexpr int at_once(int) { return 1; }

template <bool Bytes, int N>
inline I dot4(I acc, const B (&codes)[N], const B (&a)[N]) {
    for (int n = 0; n < N; ++n) acc = _mm256_dpbusd_avx_epi32(acc, codes[n], a[n]);
    return acc;
}

}  // namespace
}  // namespace starcoder

#include "simd/loops.h"

namespace starcoder {
extern const Isa isa_avxvnni;
constinit const Isa isa_avxvnni = kTable;
}  // namespace starcoder
