// New keys and values, written into their places in the cache.
#include "kernels.h"
#include "ops/attention_tile.h"
#include "simd/isa.h"
#include "sys/schedule.h"
#include "sys/scratch.h"

namespace starcoder {

namespace {

void store_rows(const float* qkv, int64_t begin, int64_t end, const Heads& heads, const Rows& rows,
                const Cache& cache) {
    const int64_t d = heads.width(), hd = heads.head_dim;
    uint16_t* narrow = scratch<uint16_t>(static_cast<size_t>(hd), 0);
    for (int64_t i = begin; i < end; ++i)
        for (int64_t head = 0; head < heads.n_kv_heads; ++head) {
            const float* key = qkv + i * heads.row() + (heads.n_heads + head) * hd;
            const int64_t slot = rows.positions[i] % kCacheBlock;
            const int64_t block = block_table(rows, i)[rows.positions[i] / kCacheBlock];
            const int64_t at = cache.block(block) + head * d * kCacheBlock;
            const float* value = key + heads.n_kv_heads * hd;
            uint16_t *keys = cache.keys + at, *values = cache.values + at;
            if (heads.bf16) {
                isa().round_bf16(key, hd, narrow);
                for (int64_t j = 0; j < hd; ++j)
                    keys[j / 2 * 2 * kCacheBlock + 2 * slot + j % 2] = narrow[j];
                isa().round_bf16(value, hd, narrow);
                for (int64_t j = 0; j < hd; ++j)
                    values[slot / 2 * 2 * d + 2 * j + slot % 2] = narrow[j];
                continue;
            }
            isa().narrow(key, hd, narrow);
            for (int64_t j = 0; j < hd; ++j) keys[j * kCacheBlock + slot] = narrow[j];
            isa().narrow(value, hd, values + slot * d);
        }
}

}  // namespace

void store_kv(Schedule& schedule, const float* qkv, int64_t n, const Heads& heads, const Rows& rows,
              const Cache& cache) {
    schedule.add(n, [=](Pieces& pieces) {
        for (const auto [begin, end] : pieces) store_rows(qkv, begin, end, heads, rows, cache);
    });
}

}  // namespace starcoder
