// Products with float weights: GEMV straight from a group, GEMM from an unpacked one, and rounding
// to bf16. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// Rows r .. r + W of input i of a group of floats. BF16 has pairs of inputs side by side; of each
// the second comes first.
template <Type Kind>
F read_floats(const uint8_t* group, int64_t i, int r) {
    const auto* halves = reinterpret_cast<const uint16_t*>(group);
    if constexpr (Kind == Type::F32)
        return load(reinterpret_cast<const float*>(group) + i * kStripRows + r);
    else if constexpr (Kind == Type::F16)
        return load_half(halves + i * kStripRows + r);
    else
        return load_bf16(halves + i / 2 * 2 * kStripRows + 2 * r, i % 2 == 0);
}

template <Type Kind>
void unpack_group_floats(const uint8_t* group, int64_t k, float* tile) {
    for (int64_t i = 0; i < k; ++i)
        for (int r = 0; r < kStripRows; r += W)
            store(tile + i * kStripRows + r, read_floats<Kind>(group, i, r));
}

void unpack_floats(Type type, const uint8_t* group, int64_t k, float* tile) {
    visit<Float>(type, [&](auto kind) { unpack_group_floats<kind.kType>(group, k, tile); });
}

// Both products below end in the same chain of `fma` over the inputs, from 0, so that they give the
// same bits. They are written out twice: made of one template, GCC 12 keeps fewer addresses in
// registers, and a prompt in F16 takes 4 percent longer.

// ---- GEMM: from an unpacked group ----

// P vectors of rows from vector v on, times T tokens.
template <int P, int T>
void float_tile(const float* tile, int64_t k, int v, const FloatGroup* x, float* acc) {
    F sum[P][T];
    EACH (t, T)
        EACH (p, P) sum[p][t] = set(0.0f);
    for (int64_t i = 0; i < k; ++i) {
        F w[P];
        EACH (p, P) w[p] = load(tile + i * kStripRows + W * (v + p));
        EACH (t, T) {
            const F a = set(x[t].x[i]);
            EACH (p, P) sum[p][t] = fma(w[p], a, sum[p][t]);
        }
    }
    EACH (t, T)
        EACH (p, P) {
            float* to = acc + t * kStripRows + W * (v + p);
            store(to, add(load(to), sum[p][t]));
        }
}

template <int P, int T>
void float_tiles(const float* tile, int64_t k, int v, const FloatGroup* x, int64_t n, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T) float_tile<P, T>(tile, k, v, x + t, acc + t * kStripRows);
    if constexpr (T > 1)
        if (t < n) float_tiles<P, T - 1>(tile, k, v, x + t, n - t, acc + t * kStripRows);
}

void gemm_floats(const float* tile, int64_t k, const FloatGroup* x, int64_t n, float* acc) {
    for (int v = 0; v < kStripRows / W; v += kTileVectors)
        float_tiles<kTileVectors, kFloatTileTokens>(tile, k, v, x, n, acc);
}

// ---- GEMV: straight from a group ----

// Rows that are multiplied at once: by one or two tokens all, so that lines are loaded in the order
// in which they lie.
constexpr int vectors_of(int tokens) { return tokens <= 2 ? kStripRows / W : kTileVectors; }

template <Type Kind, int T, bool Prefetch>
void group_tile(const uint8_t* group, int64_t k, const FloatGroup* x, float* acc) {
    constexpr int P = vectors_of(T);
    constexpr int kFloats = 64 / static_cast<int>(sizeof(typename Float<Kind>::Bits));  // of a line
    for (int v = 0; v < kStripRows / W; v += P) {
        F sum[P][T];
        EACH (t, T)
            EACH (p, P) sum[p][t] = set(0.0f);
        for (int64_t i = 0; i < k; ++i) {
            F w[P];
            EACH (p, P) {
                const int r = (v + p) * W;
                if (Prefetch && r % kFloats == 0)
                    prefetch_far(group + (i * kStripRows + r) / kFloats * 64);
                w[p] = read_floats<Kind>(group, i, r);
            }
            EACH (t, T) {
                const F a = set(x[t].x[i]);
                EACH (p, P) sum[p][t] = fma(w[p], a, sum[p][t]);
            }
        }
        EACH (t, T)
            EACH (p, P) {
                float* to = acc + t * kStripRows + W * (v + p);
                store(to, add(load(to), sum[p][t]));
            }
    }
}

template <Type Kind, int T>
void group_tiles(const uint8_t* group, int64_t k, const FloatGroup* x, int64_t n, float* acc) {
    if constexpr (T > 1)
        if (n < T) return group_tiles<Kind, T - 1>(group, k, x, n, acc);
    constexpr int kMost = Kind == Type::F16 ? kStreamTokens : kStreamTokensFloats;
    if (T <= kMost && vectors_of(T) * W == kStripRows && hardware_follows_streams)
        group_tile<Kind, T, false>(group, k, x, acc);
    else
        group_tile<Kind, T, true>(group, k, x, acc);
}

void gemv_floats(Type type, const uint8_t* group, int64_t k, const FloatGroup* x, int64_t n,
                 float* acc) {
    visit<Float>(type,
                 [&](auto kind) { group_tiles<kind.kType, kGemvTokens>(group, k, x, n, acc); });
}

// ---- bf16 ----

void round_bf16(const float* x, int64_t k, uint16_t* to) {
    encode_bf16(x, k, to);
    for (int64_t i = 0; i < k; ++i)
        if (const auto bits = __builtin_bit_cast(uint32_t, x[i]); !(bits & 0x7f800000))
            to[i] = bits >> 16 & 0x8000;
}

}  // namespace
}  // namespace starcoder
