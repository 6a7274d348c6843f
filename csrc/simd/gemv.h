// GEMV: a strip of 32 rows of weights times one token, straight from its panels. Part of loops.h.
//
// This is where a weight meets an activation. For each group of 128 inputs, in order:
//
//     for each sub-block:  dot    = sum of code * q, exact, in int32, from -zero * sum of q
//                          inner += dot * scale [+ min * sum of q]
//     acc += inner * (scale of the activations)
//
// A vector holds W rows, a lane each, so nothing is moved between lanes. Q4_0 and Q4_1 have int16
// scales and keep `inner` in int32 (`add_group_int16`, types/int16_scales.h).
//
// T is the number of tokens: read it as 1. Up to gemv_tokens share what is read of a weight, in the
// same order of operations: gemv_tokens.h reads codes and calls `dot4`, which multiplies them.
#pragma once

namespace starcoder {
namespace {

// acc (T, rows r .. r + W) += one group with scales of f16.
template <class P, int T, bool Prefetch>
[[gnu::always_inline]] inline void add_group(const P& panel, int r, const ActivationGroup* x,
                                             float* acc) {
    F inner[T];
    EACH (t, T) inner[t] = set(0.0f);
    const auto add_sub_block = [&](int s, const I* dot) {
        const F scale = read_scale(panel, s, r), least = read_min(panel, s, r);
        EACH (t, T) {
            inner[t] = fma(to_float(dot[t]), scale, inner[t]);
            if (P::Min) inner[t] = fma(least, set(x[t].sum[s]), inner[t]);
        }
    };
    for (int b = 0; b < kBlocks; ++b) {
        constexpr bool kTwo = P::Subs == 8;  // low and high nibbles are sub-blocks of their own
        const int s = kTwo ? 2 * b : b;
        if (Prefetch && r == 0) prefetch_quarter<P, T>(panel, b);
        I low[T], high[T];
        EACH (t, T) {
            low[t] = set_int(P::Min ? 0 : x[t].start[s]);
            high[t] = set_int(P::Min || !kTwo ? 0 : x[t].start[s + 1]);
        }
        dot_block<P, T>(panel, b, 4 * r, x, low, high);
        if constexpr (!kTwo)
            EACH (t, T) low[t] = add_int(low[t], high[t]);
        add_sub_block(s, low);
        if constexpr (kTwo) add_sub_block(s + 1, high);
    }
    EACH (t, T) {
        float* to = acc + t * kStripRows + r;
        store(to, fma(inner[t], set(x[t].scale), load(to)));
    }
}

// The same with int16 scales: two sub-blocks at a time, whose lanes are interleaved until their
// sums are packed to 16 bits.
//
// The loops are not unrolled: the compiler would prefetch the whole panel in one burst, and one
// token would read 0.92 to 0.97 of what it does.
template <class P, int T, bool Prefetch>
[[gnu::always_inline]] inline void add_group_int16(const P& panel, int r, const ActivationGroup* x,
                                                   float* acc) {
    constexpr int kHalf = P::Steps / 2;
    I inner[T];
    EACH (t, T) inner[t] = set_int(0);
#pragma GCC unroll 1
    for (int pair = 0; pair < P::Subs / 2; ++pair) {
        I dot[2][T];
        EACH (t, T)
            EACH (h, 2) dot[h][t] = set_two(x[t].start + 2 * pair, h);
#pragma GCC unroll 1
        for (int i = 0; i < kHalf; i += 2) {
            if (Prefetch && r == 0) prefetch_quarter<P, T>(panel, (pair * kHalf + i) / 2);
            dot_steps<P, T>(panel, pair, i, r, x, dot);
        }
        I scales, minima;
        read_int16_scales(panel, pair, r, scales, minima);
        EACH (t, T) {
            inner[t] = dot_int16(inner[t], pack_int16(dot[0][t], dot[1][t]), scales);
            if constexpr (P::Min)
                inner[t] = dot_int16(inner[t], minima, set_int(x[t].pair_sum[pair]));
        }
    }
    EACH (t, T) {
        float* to = acc + t * kStripRows + r;
        store(to, fma(to_float(inner[t]), set(x[t].scale), load(to)));
    }
}

// acc (T, 16) += one group of a panel.
template <class P, int T, bool Prefetch>
[[gnu::always_inline]] inline void add_panel(const P& panel, const ActivationGroup* x, float* acc) {
    for (int r = 0; r < kRows; r += W)
        if constexpr (P::Int16)
            add_group_int16<P, T, Prefetch>(panel, r, x, acc);
        else
            add_group<P, T, Prefetch>(panel, r, x, acc);
}

// The same as a function of its own: inlined, eight tokens would take 1.1 times as long.
template <class P, int T, bool Prefetch>
[[gnu::noinline]] void add_panel_apart(const P& panel, const ActivationGroup* x, float* acc) {
    add_panel<P, T, Prefetch>(panel, x, acc);
}

// acc (T, 32) += all groups of a strip.
template <class P, int T, bool Prefetch>
void add_strip(const uint8_t* groups, int64_t n_groups, const ActivationGroup* x, int64_t stride,
               float* acc) {
    for (const ActivationGroup* end = x + n_groups * stride; x < end; x += stride)
        for (int which = 0; which < 2; ++which, groups += sizeof(P)) {
            const P& panel = *reinterpret_cast<const P*>(groups);
            touch_scales(panel);
            if constexpr (T <= kStreamTokens)
                add_panel<P, T, Prefetch>(panel, x, acc + kRows * which);
            else
                add_panel_apart<P, T, Prefetch>(panel, x, acc + kRows * which);
        }
}

template <class P, int T>
void gemv_tokens(const uint8_t* groups, int64_t n_groups, const ActivationGroup* x, int64_t stride,
                 int64_t n, float* acc) {
    if constexpr (T > 1)
        if (n < T) return gemv_tokens<P, T - 1>(groups, n_groups, x, stride, n, acc);
    if (T <= kStreamTokens && hardware_follows_streams)
        add_strip<P, T, false>(groups, n_groups, x, stride, acc);
    else
        add_strip<P, T, true>(groups, n_groups, x, stride, acc);
}

void gemv(Type type, const uint8_t* groups, int64_t n_groups, const ActivationGroup* x,
          int64_t stride, int64_t n, float* acc) {
    visit<Quantized>(type, [&](auto kind) {
        using P = typename decltype(kind)::Panel;
        gemv_tokens<P, kGemvTokens>(groups, n_groups, x, stride, n, acc);
    });
}

}  // namespace
}  // namespace starcoder
