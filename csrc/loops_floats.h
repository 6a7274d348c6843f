// Matrix products with float weights: panels to strips, tiles of strips and panels, rounding to
// bf16. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// Rows r .. r + W of input i of a panel of floats. BF16 has pairs of inputs side by side; of each
// the second comes first.
template <Type Kind>
F read_floats(const uint8_t* panel, int64_t i, int r) {
    const auto* halves = reinterpret_cast<const uint16_t*>(panel);
    if constexpr (Kind == Type::F32)
        return load(reinterpret_cast<const float*>(panel) + i * kRows + r);
    else if constexpr (Kind == Type::F16)
        return load_half(halves + i * kRows + r);
    else
        return load_bf16(halves + i / 2 * 2 * kRows + 2 * r, i % 2 == 0);
}

template <Type Kind>
void unpack_panel_floats(const uint8_t* panel, int64_t k, int half, float* strip) {
    for (int64_t i = 0; i < k; ++i)
        for (int r = 0; r < kRows; r += W)
            store(strip + i * kStripRow + kRows * half + r, read_floats<Kind>(panel, i, r));
}

void unpack_floats(Type type, const uint8_t* panel, int64_t k, int half, float* strip) {
    switch (type) {
        case Type::F32: return unpack_panel_floats<Type::F32>(panel, k, half, strip);
        case Type::F16: return unpack_panel_floats<Type::F16>(panel, k, half, strip);
        default: return unpack_panel_floats<Type::BF16>(panel, k, half, strip);
    }
}

// ---- dot products ----

template <int P, int T>
void float_tile(const float* strip, int64_t k, int v, const float* x, float* acc) {
    F sum[P][T];
    EACH (t, T)
        EACH (p, P) sum[p][t] = set(0.0f);
    for (int64_t i = 0; i < k; ++i) {
        F w[P];
        EACH (p, P) w[p] = load(strip + i * kStripRow + W * (v + p));
        EACH (t, T) {
            const F a = set(x[t * kGroup + i]);
            EACH (p, P) sum[p][t] = fma(w[p], a, sum[p][t]);
        }
    }
    EACH (t, T)
        EACH (p, P) {
            float* to = acc + t * kStripRow + W * (v + p);
            store(to, add(load(to), sum[p][t]));
        }
}

template <int P, int T>
void float_tiles(const float* strip, int64_t k, int v, const float* x, int64_t n, float* acc) {
    int64_t t = 0;
    for (; t + T <= n; t += T) float_tile<P, T>(strip, k, v, x + t * kGroup, acc + t * kStripRow);
    if constexpr (T > 1)
        if (t < n) float_tiles<P, T - 1>(strip, k, v, x + t * kGroup, n - t, acc + t * kStripRow);
}

void dot_floats(const float* strip, int64_t k, const float* x, int64_t n, float* acc) {
    for (int v = 0; v < kStripRow / W; v += kTileVectors)
        float_tiles<kTileVectors, kFloatTileTokens>(strip, k, v, x, n, acc);
}

// The same straight from the panels, for few tokens: the same operations as in float_tile.
template <Type Kind, int T>
void float_panels(const uint8_t* const panels[2], int64_t k, const float* x, int64_t n,
                  float* acc) {
    if constexpr (T > 1)
        if (n < T) return float_panels<Kind, T - 1>(panels, k, x, n, acc);
    constexpr int P = kTileVectors, kInputs = Kind == Type::F32 ? 1 : 2;  // of a line
    for (int v = 0; v < kStripRow / W; v += P) {
        F sum[P][T];
        EACH (t, T)
            EACH (p, P) sum[p][t] = set(0.0f);
        for (int64_t i = 0; i < k; ++i) {
            F w[P];
            EACH (p, P) {
                const uint8_t* panel = panels[(v + p) / kVectors];
                const int at = (v + p) % kVectors;
                if (at == 0 && i % kInputs == 0) prefetch_far(panel + i / kInputs * 64);
                w[p] = read_floats<Kind>(panel, i, at * W);
            }
            EACH (t, T) {
                const F a = set(x[t * kGroup + i]);
                EACH (p, P) sum[p][t] = fma(w[p], a, sum[p][t]);
            }
        }
        EACH (t, T)
            EACH (p, P) {
                float* to = acc + t * kStripRow + W * (v + p);
                store(to, add(load(to), sum[p][t]));
            }
    }
}

void dot_few_floats(Type type, const uint8_t* const panels[2], int64_t k, const float* x, int64_t n,
                    float* acc) {
    constexpr int T = kFewTokens;
    switch (type) {
        case Type::F32: return float_panels<Type::F32, T>(panels, k, x, n, acc);
        case Type::F16: return float_panels<Type::F16, T>(panels, k, x, n, acc);
        default: return float_panels<Type::BF16, T>(panels, k, x, n, acc);
    }
}

void round_bf16(const float* x, int64_t k, uint16_t* to) {
    encode_bf16(x, k, to);
    for (int64_t i = 0; i < k; ++i)
        if (const auto bits = __builtin_bit_cast(uint32_t, x[i]); !(bits & 0x7f800000))
            to[i] = bits >> 16 & 0x8000;
}

}  // namespace
}  // namespace starcoder
