// The dot products of gemv.h: codes of a panel times activations, for a few tokens that share what
// is read of the panel; and its prefetching. Part of loops.h.
#pragma once

namespace starcoder {
namespace {

// Block b of a panel, lanes i / 4 ..: its vectors J .. 3 added to `low`, J + 4 .. 7 to `high`.
template <class P, int T, int J = 0>
[[gnu::always_inline]] inline void dot_block(const P& panel, int b, int i, const ActivationGroup* x,
                                             I* low, I* high) {
    constexpr int N = at_once(kCodeBits<P>);
    constexpr bool Bytes = kCodeBits<P> == 8;
    B low_codes[N], high_codes[N], q[N];
    [&]<int... n>(std::integer_sequence<int, n...>) {
        (read_codes<P, J + n>(panel, b, i, low_codes[n], high_codes[n]), ...);
    }(std::make_integer_sequence<int, N>());
    EACH (t, T) {
        const int8_t* first = x[t].q + 32 * b + 4 * J;
        EACH (n, N) q[n] = set_four(first + 4 * n);
        low[t] = dot4<Bytes>(low[t], low_codes, q);
        EACH (n, N) q[n] = set_four(first + 4 * n + 16);
        high[t] = dot4<Bytes>(high[t], high_codes, q);
    }
    if constexpr (J + N < 4) dot_block<P, T, J + N>(panel, b, i, x, low, high);
}

// Nibble vectors i and i + 1 of a pair of interleaved sub-blocks, each with two steps. One or two
// tokens wait for memory: they use up each line before they touch the next, or one would read 0.96
// of what it does. More tokens share what they take from the activations between two lines.
template <class P, int T>
[[gnu::always_inline]] inline void dot_steps(const P& panel, int pair, int i, int r,
                                             const ActivationGroup* x, I (&dot)[2][T]) {
    constexpr int kHalf = P::Steps / 2, N = at_once(4);
    const int k = pair * kHalf + i;
    const auto codes = [&](int vector, int h, int high) {
        const B nibbles =
            load_bytes(interleaved_nibbles(panel, k + vector) + step_offset(r) + kSecondVector * h);
        return high ? high_nibbles(nibbles) : low_nibbles(nibbles);
    };
    const auto inputs = [&](int t, int vector, int h, int high) {
        const int step = P::Steps * pair + high * kHalf + i + vector;
        return set_eight(x[t].q + 8 * step, h);
    };
    if constexpr (T <= 2 && N == 1) {
        EACH (m, 8) {
            const int vector = m / 4, h = m / 2 % 2, high = m % 2;
            const B w[1] = {codes(vector, h, high)};
            EACH (t, T) {
                const B q[1] = {inputs(t, vector, h, high)};
                dot[h][t] = dot4<false>(dot[h][t], w, q);
            }
        }
    } else {
        EACH (j, 4 / N) {
            B w[2][N], q[N];
            EACH (h, 2)
                EACH (n, N) w[h][n] = codes((N * j + n) % 2, h, (N * j + n) / 2);
            EACH (t, T)
                EACH (h, 2) {
                    EACH (n, N) q[n] = inputs(t, (N * j + n) % 2, h, (N * j + n) / 2);
                    dot[h][t] = dot4<false>(dot[h][t], w[h], q);
                }
        }
    }
}

// Prefetches a quarter of a panel further on, for T tokens. Spread out like this, the requests of
// one quarter are answered while the next is multiplied.
template <class P, int T>
void prefetch_quarter(const P& panel, int b) {
    constexpr size_t kLines = sizeof(P) / 64;
    const auto* lines = reinterpret_cast<const uint8_t*>(&panel);
    for (size_t i = kLines * b / kBlocks; i < kLines * (b + 1) / kBlocks; ++i)
        if constexpr (T <= kStreamTokens)
            prefetch_near(lines + 64 * i);
        else
            prefetch_far(lines + 64 * i);
}

// Scales are needed last, but lie first: lines are then loaded in the order in which they lie.
template <class P>
void touch_scales(const P& panel) {
    const auto* lines = reinterpret_cast<const uint8_t*>(&panel.scales);
    for (size_t i = 0; i < sizeof(panel.scales); i += 64) prefetch_here(lines + i);
}

}  // namespace
}  // namespace starcoder
