// Runs the kernels of another machine: reads operations and their inputs from a file, writes the
// results to another. `test_neon.py` compares them with those of the machine at hand.
//
//   replay ISA INPUT OUTPUT
//
// A record is four int32, then arrays: {type, m, k, n}, blocks (m, k), x (n, k) -> linear (n, m);
// or {-1 or -4, n_heads, head_dim, n}, qkv (n, (n_heads + 2) head_dim) -> attention (n, ...) over
// keys and values in f16 or bf16;
// or {-2, type, m, k}, x (m, k) -> the bytes of its blocks, each as a float;
// or {-3, kind, 0, 0} -> the mean product of `peak`, and whether `Memory` gave all bits.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "isa.h"
#include "kernels.h"
#include "scratch.h"
#include "threads.h"

using namespace starcoder;

namespace {

template <class T>
std::vector<T> read(std::FILE* file, size_t n) {
    std::vector<T> values(n);
    if (std::fread(values.data(), sizeof(T), n, file) != n) std::exit(3);
    return values;
}

std::vector<float> run_linear(std::FILE* in, Type type, int64_t m, int64_t k, int64_t n) {
    const auto nbytes = m * (k / block_len(type)) * block_bytes(type);
    const auto blocks = read<uint8_t>(in, static_cast<size_t>(nbytes));
    const auto x = read<float>(in, static_cast<size_t>(n * k));
    std::vector<float> y(static_cast<size_t>(n * m));
    const Matrix w(type, blocks.data(), m, k);
    Buffer shared;
    const Input input{x.data(), nullptr, nullptr};
    const Output output{y.data(), nullptr, nullptr};
    uint8_t* memory = shared.of(linear_scratch(w, input, n));
    together(n_threads(), [&](Team& team) {
        linear(team, w, input, n, nullptr, Activation::GeluTanh, nullptr, output, memory);
    });
    return y;
}

std::vector<float> run_attention(std::FILE* in, int64_t n_heads, int64_t head_dim, int64_t n,
                                 bool bf16) {
    const Heads heads{n_heads, 1, head_dim, bf16};
    const auto qkv = read<float>(in, static_cast<size_t>(n * heads.row()));
    const int64_t blocks = (n + 15) / 16;
    std::vector<int32_t> positions, starts{0, static_cast<int32_t>(n)}, table;
    for (int32_t i = 0; i < n; ++i) positions.push_back(i);
    for (int32_t i = 0; i < blocks; ++i) table.push_back(i);
    const auto size = static_cast<size_t>(blocks * heads.width() * 16);
    std::vector<uint16_t> keys(size), values(size);
    const Rows rows{positions.data(), starts.data(), table.data(), 1, blocks};
    const Cache cache = Cache::of(keys.data(), values.data(), heads.width() * 16, 1);
    std::vector<float> y(static_cast<size_t>(n * n_heads * head_dim));
    Buffer shared;
    uint8_t* memory = shared.of(attention_scratch(n, heads, rows, n_threads()));
    together(n_threads(), [&](Team& team) {
        store_kv(team, qkv.data(), n, heads, rows, cache);
        team.barrier();
        attention(team, qkv.data(), n, heads, rows, cache, y.data(), memory);
    });
    return y;
}

std::vector<float> run_quantize(std::FILE* in, Type type, int64_t m, int64_t k) {
    const auto x = read<float>(in, static_cast<size_t>(m * k));
    const auto nbytes = m * (k / block_len(type)) * block_bytes(type);
    std::vector<uint8_t> blocks(static_cast<size_t>(nbytes));
    quantize(type, x.data(), m, k, false, blocks.data());
    return {blocks.begin(), blocks.end()};
}

std::vector<float> run_limits(Arithmetic kind) {
    const uint64_t bits = 0xdeadbeef12345678;
    const bool all = Memory(1 << 20, bits).read(1).bits == bits;
    return {static_cast<float>(peak(kind, 0.0).product), all ? 1.0f : 0.0f};
}

std::vector<float> run(std::FILE* in, const int32_t* head) {
    if (head[0] == -3) return run_limits(Arithmetic(head[1]));
    if (head[0] == -1 || head[0] == -4)
        return run_attention(in, head[1], head[2], head[3], head[0] == -4);
    if (head[0] == -2) return run_quantize(in, Type(head[1]), head[2], head[3]);
    return run_linear(in, Type(head[0]), head[1], head[2], head[3]);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 4 || !use_isa(argv[1])) return 2;
    std::FILE* in = std::fopen(argv[2], "rb");
    std::FILE* out = std::fopen(argv[3], "wb");
    if (!in || !out) return 2;
    set_n_threads(2);
    int32_t head[4];
    while (std::fread(head, sizeof(head), 1, in) == 1) {
        const auto y = run(in, head);
        std::fwrite(y.data(), sizeof(float), y.size(), out);
    }
    return std::fclose(out);
}
