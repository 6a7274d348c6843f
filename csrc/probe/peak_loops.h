// What a machine does at best, with nothing around it: products, and reading. Part of loops.h.
//
// No compiler may take the work out of a loop. Codes and memory change from round to round; sums of
// floats are in rounded order, and start from different numbers, so that none is another's.
#pragma once

namespace starcoder {
namespace {

double lane_total(I x) {
    alignas(64) int32_t lanes[W];
    store_int(lanes, x);
    double total = 0;
    for (const int32_t lane : lanes) total += lane;
    return total;
}

// Compilers move every sum to another register from round to round; not inside of these.
constexpr int kRoundsAtOnce = 4;

// As many sums at once as the kernels have, codes from the first cache, activations in registers.
Products int8_peak(const uint8_t* codes, const int8_t* x, int64_t rounds) {
    constexpr int N = at_once(4);
    I sum[kTileVectors][kTileTokens];
    B a[kTileTokens][N], w[N];
    EACH (t, kTileTokens) {
        EACH (n, N) a[t][n] = set_four(x + 4 * t);
        EACH (v, kTileVectors) sum[v][t] = set_int(0);
    }
    for (int64_t i = 0; i < rounds; i += kRoundsAtOnce) {
        const uint8_t* at = codes + i / kRoundsAtOnce % 2 * (kPeakBytes / 2);
        EACH (j, kRoundsAtOnce)
            EACH (v, kTileVectors) {
                EACH (n, N)
                    w[n] = load_bytes(at + j * (kPeakBytes / 2 / kRoundsAtOnce) + 4 * W * (v + n));
                EACH (t, kTileTokens) sum[v][t] = dot4<false>(sum[v][t], w, a[t]);
            }
    }
    double total = 0;
    EACH (v, kTileVectors)
        EACH (t, kTileTokens) total += lane_total(sum[v][t]);
    return {rounds * kTileVectors * kTileTokens * N * W * 4, total};
}

// Enough independent accumulators to hide FMA latency. Their start values are symmetric, so they
// cancel in the total.
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

// Lines prefetched at once, where the hardware does not follow the stream.
constexpr int kLinesAtOnce = 3;

// All 64-byte lines at `data`, or-ed together into `line` (64 bytes), each also multiplied, by 0.
// Without the product two threads on Zen 4 read 5 to 8 percent less: a processor with nothing to do
// between two lines waits for each instead of fetching ahead.
template <bool Prefetch>
void read_each(const uint8_t* data, int64_t n_lines, uint8_t* line) {
    constexpr int kPieces = 16 / W;
    const volatile int32_t zero = 0;
    const int32_t four = zero;
    B all[kPieces];
    EACH (j, kPieces) all[j] = load_bytes(line + 4 * W * j);
    const B q[1] = {set_four(reinterpret_cast<const int8_t*>(&four))};
    I sum = set_int(0);
    for (int64_t i = 0; i < n_lines; ++i) {
        if (Prefetch && i % kLinesAtOnce == 0)
            for (int l = 0; l < kLinesAtOnce; ++l) prefetch_near(data + 64 * (i + l));
        EACH (j, kPieces) {
            const B w[1] = {load_bytes(data + 64 * i + 4 * W * j)};
            all[j] = either(all[j], w[0]);
            sum = dot4<false>(sum, w, q);
        }
    }
    EACH (j, kPieces) store_codes(line + 4 * W * j, all[j]);
    line[0] |= static_cast<uint8_t>(lane_total(sum));
}

void read_lines(const uint8_t* data, int64_t n_lines, uint8_t* line) {
    (hardware_follows_streams ? read_each<false> : read_each<true>)(data, n_lines, line);
}

}  // namespace
}  // namespace starcoder
