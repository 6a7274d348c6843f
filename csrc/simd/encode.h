// Floats -> weights of every type, in blocks of 32 or 256 that know nothing of each other: part of
// loops.h.
//
// Q4_0 to Q8_0 follow ggml's reference (encode_plain.h). For the K types and IQ4_NL scales and
// codes are searched (encode_search.h), sixteen groups at a time (encode_tile.h), and then packed
// into blocks (encode_bytes.h).
//
// A block with a weight that is not finite gets a scale that is not a number: it stays visible.
#pragma once

namespace starcoder {
namespace {

// How many groups of how many weights, the values, the whole numbers of scales, the starts.
using FitQ2_K = GroupFit<16, 16, Even<0, 3>, 0, 15, 16>;
using FitQ3_K = GroupFit<16, 16, Even<-4, 3>, -32, 31, 12>;
using FitQ4_K = GroupFit<8, 32, Even<0, 15>, 0, 63, 12>;
using FitQ5_K = GroupFit<8, 32, Even<0, 31>, 0, 63, 8>;
using FitQ6_K = GroupFit<16, 16, Even<-32, 31>, -128, 127, 8>;
using FitIQ4_NL = GroupFit<1, 32, Codebook, 1, 1, 8>;

template <class Fit, class Block>
void encode_searched(const float* x, int64_t n, Block* out) {
    constexpr int kAtOnce = kLanes / Fit::kGroups, kWeights = Fit::kGroups * Fit::kLen;
    for (int64_t left = n / kWeights; left > 0; left -= kAtOnce, x += kAtOnce * kWeights) {
        const int n_blocks = left < kAtOnce ? static_cast<int>(left) : kAtOnce;
        Tile<Fit::kLen> tile;
        Codes<Fit::kLen> codes;
        Scales scales;
        fill(x, n_blocks, Fit::kGroups, tile);
        search<Fit>(tile, scales, codes);
        for (int b = 0; b < n_blocks; ++b, ++out) {
            const int lane = b * Fit::kGroups;
            uint8_t code[kWeights];
            untile(codes, lane, Fit::kGroups, code);
            pack_block(code, scales, lane, *out);
            if (!tile.finite[lane]) {
                *out = {};
                out->d = kNotANumber;
            }
        }
    }
}

// ---- floats ----

void narrow(const float* from, int64_t k, half* to) {
    int64_t i = 0;
    for (; i + W <= k; i += W) store_half(to + i, load(from + i));
    if (i == k) return;
    alignas(64) float tail[W] = {};
    alignas(64) half out[W];
    for (int64_t j = i; j < k; ++j) tail[j - i] = from[j];
    store_half(out, load(tail));
    for (int64_t j = i; j < k; ++j) to[j] = out[j - i];
}

void encode_bf16(const float* x, int64_t n, uint16_t* out) {
    for (int64_t i = 0; i < n; ++i) {
        const auto bits = __builtin_bit_cast(uint32_t, x[i]);
        const uint32_t rounded = bits + 0x7fff + ((bits >> 16) & 1), quiet = bits | 0x400000;
        out[i] = static_cast<uint16_t>(((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded) >> 16);
    }
}

void widen_half(const half* x, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + W <= n; i += W) store(out + i, load_half(x + i));
    for (; i < n; ++i) out[i] = half_to_float(x[i]);
}

void encode(Type type, const float* x, int64_t n, bool fused, void* out) {
    switch (type) {
        case Type::F32: __builtin_memcpy(out, x, static_cast<size_t>(n) * 4); break;
        case Type::F16: narrow(x, n, static_cast<half*>(out)); break;
        case Type::BF16: encode_bf16(x, n, static_cast<uint16_t*>(out)); break;
        case Type::Q4_0: encode_plain(x, n, fused, static_cast<BlockQ4_0*>(out)); break;
        case Type::Q4_1: encode_plain(x, n, fused, static_cast<BlockQ4_1*>(out)); break;
        case Type::Q5_0: encode_plain(x, n, fused, static_cast<BlockQ5_0*>(out)); break;
        case Type::Q5_1: encode_plain(x, n, fused, static_cast<BlockQ5_1*>(out)); break;
        case Type::Q8_0: encode_plain(x, n, fused, static_cast<BlockQ8_0*>(out)); break;
        case Type::Q2_K: encode_searched<FitQ2_K>(x, n, static_cast<BlockQ2_K*>(out)); break;
        case Type::Q3_K: encode_searched<FitQ3_K>(x, n, static_cast<BlockQ3_K*>(out)); break;
        case Type::Q4_K: encode_searched<FitQ4_K>(x, n, static_cast<BlockQ4_K*>(out)); break;
        case Type::Q5_K: encode_searched<FitQ5_K>(x, n, static_cast<BlockQ5_K*>(out)); break;
        case Type::Q6_K: encode_searched<FitQ6_K>(x, n, static_cast<BlockQ6_K*>(out)); break;
        case Type::IQ4_NL: encode_searched<FitIQ4_NL>(x, n, static_cast<BlockIQ4_NL*>(out)); break;
    }
}

}  // namespace
}  // namespace starcoder
