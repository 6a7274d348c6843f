#include "python/checks.h"

#include <stdexcept>
#include <string>

namespace starcoder {

void require(bool fits, const char* what) {
    if (!fits) throw std::invalid_argument(what);
}

Type checked_type(int number) {
    switch (number) {
#define X(name, number, ...) \
    case number: return Type::name;
        STARCODER_FLOAT_TYPES(X)
        STARCODER_QUANTIZED_TYPES(X)
#undef X
        default: throw std::invalid_argument("unknown tensor type " + std::to_string(number));
    }
}

Activation checked_activation(int number) {
    switch (number) {
#define X(name, number, text) \
    case number: return Activation::name;
        STARCODER_ACTIVATIONS(X)
#undef X
        default: throw std::invalid_argument("unknown activation " + std::to_string(number));
    }
}

Rows checked_rows(int64_t n, int64_t n_blocks, In<int32_t, 1> positions, In<int32_t, 1> row_starts,
                  In<int32_t, 2> block_tables) {
    const int64_t sequences = size(block_tables, 0), table_len = size(block_tables, 1);
    require(size(positions, 0) == n && size(row_starts, 0) == sequences + 1,
            "attention: positions (n), row_starts (sequences + 1)");
    require(row_starts.data()[0] == 0 && row_starts.data()[sequences] == n,
            "attention: row_starts from 0 to n");
    for (int64_t s = 0; s < sequences; ++s)
        require(row_starts.data()[s] <= row_starts.data()[s + 1],
                "attention: row_starts must not fall");
    for (int64_t i = 0; i < n; ++i)
        require(positions.data()[i] >= 0 && positions.data()[i] < table_len * 16,
                "attention: positions inside the block table");
    for (int64_t s = 0; s < sequences; ++s)
        for (int64_t i = row_starts.data()[s] + 1; i < row_starts.data()[s + 1]; ++i)
            require(positions.data()[i - 1] <= positions.data()[i],
                    "attention: positions of a sequence must not fall");
    for (size_t i = 0; i < block_tables.size(); ++i)
        require(block_tables.data()[i] >= 0 && block_tables.data()[i] < n_blocks,
                "attention: block tables of blocks in the cache");
    return {positions.data(), row_starts.data(), block_tables.data(), sequences, table_len};
}

Heads checked_heads(int64_t qkv_width, int64_t n_heads, int64_t n_kv_heads, bool bf16) {
    require(n_heads > 0 && n_kv_heads > 0 && n_heads % n_kv_heads == 0,
            "attention: n_kv_heads divides n_heads");
    const Heads heads{n_heads, n_kv_heads, qkv_width / (n_heads + 2 * n_kv_heads), bf16};
    require(heads.head_dim > 0 && heads.row() == qkv_width,
            "attention: qkv (n, (n_heads + 2 n_kv_heads) head_dim)");
    return heads;
}

}  // namespace starcoder
