// What a machine does at best, with nothing around it: products, and reading. Part of loops.h.
//
// No compiler may take the work out of a loop. Codes and memory change from round to round; sums of
// floats are in rounded order, and start from different numbers, so that none is another's.
#pragma once

namespace starcoder {
namespace {

// Twice as many sums at once as the kernels have: with their twelve, AVX-512 machines lose a
// seventh to the latency of a product. They start below and above 0, and together from 0.
Products int8_peak(const uint8_t* codes, const int8_t* x, int64_t rounds) {
    constexpr int T = 2 * kTileTokens, kChains = kTileVectors * T;
    I sum[kTileVectors][T];
    EACH (v, kTileVectors)
        EACH (t, T) sum[v][t] = set_int(2 * (v * T + t) - (kChains - 1));
    const B a[2] = {set_four(x), set_four(x + 4)};
    for (int64_t i = 0; i < rounds; ++i) {
        const uint8_t* at = codes + i % 4 * (kPeakBytes / 4);
        EACH (v, kTileVectors) {
            const B w = load_bytes(at + 4 * W * v);
            EACH (t, T) sum[v][t] = dot4<false>(sum[v][t], w, a[t % 2]);
        }
    }
    double total = 0;
    for (auto& tokens : sum)
        for (I one : tokens) {
            alignas(64) int32_t lanes[W];
            store_int(lanes, one);
            for (int32_t lane : lanes) total += lane;
        }
    return {rounds * kChains * W * 4, total};
}

// The sums that hide the latency of `fma`: they start above and below 0, and together from 0.
struct FloatSums {
    static constexpr int kChains = kTileVectors * kFloatTileTokens;
    F sum[kTileVectors][kFloatTileTokens];

    FloatSums() {
        EACH (v, kTileVectors)
            EACH (t, kFloatTileTokens)
                sum[v][t] =
                    set(static_cast<float>(v * kFloatTileTokens + t) - (kChains - 1) / 2.0f);
    }
    double total() const {
        double total = 0;
        for (auto& tokens : sum)
            for (F one : tokens) {
                alignas(64) float lanes[W];
                store(lanes, one);
                for (float lane : lanes) total += lane;
            }
        return total;
    }
};

Products f32_peak(const float* w, const float* x, int64_t rounds) {
    const F a = load(w), b = load(x);
    FloatSums sums;
    for (int64_t i = 0; i < rounds; ++i)
        EACH (v, kTileVectors)
            EACH (t, kFloatTileTokens) sums.sum[v][t] = fma(a, b, sums.sum[v][t]);
    return {rounds * FloatSums::kChains * W, sums.total()};
}

// All 64-byte lines at `data`, or-ed together into `line` (64 bytes).
void read_lines(const uint8_t* data, int64_t n_lines, uint8_t* line) {
    constexpr int kPieces = 16 / W;
    B all[kPieces];
    EACH (j, kPieces) all[j] = load_bytes(line + 4 * W * j);
    for (int64_t i = 0; i < n_lines; ++i) {
        const uint8_t* at = data + 64 * i;
        __builtin_prefetch(at + kAhead);
        EACH (j, kPieces) all[j] = either(all[j], load_bytes(at + 4 * W * j));
    }
    EACH (j, kPieces) store_codes(line + 4 * W * j, all[j]);
}

}  // namespace
}  // namespace starcoder
