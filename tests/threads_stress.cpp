// The core's threads under a sanitizer: everything that runs at once in a server, for a few
// seconds.
//
//   threads_stress SECONDS
//
// Two models answer in two threads, while others pack weights, collapse their pages, look for
// weights that are not finite and change the number of threads; and now and then the process forks,
// and the child answers too. Every answer must have the bits that the model gave alone. Exit code 1
// if one has not; a report of the sanitizer is its own. `make sanitize` runs it.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "graph/graph.h"
#include "kernels.h"
#include "simd/isa.h"
#include "sys/threads.h"
#include "sys/weight_memory.h"
#include "types/decode.h"
#include "types/encode.h"

using namespace starcoder;

namespace {

using Numbers = std::vector<float>;

Numbers random_numbers(int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.1f);
    Numbers numbers(static_cast<size_t>(n));
    for (float& x : numbers) x = normal(random);
    return numbers;
}

std::vector<uint8_t> random_blocks(Type type, int64_t n_rows, int64_t n_cols, unsigned seed) {
    const Numbers x = random_numbers(n_rows * n_cols, seed);
    const int64_t nbytes = n_rows * (n_cols / block_len(type)) * block_bytes(type);
    std::vector<uint8_t> blocks(static_cast<size_t>(nbytes));
    quantize(type, x.data(), n_rows, n_cols, false, blocks.data());
    return blocks;
}

Matrix random_matrix(Type type, int64_t n_rows, int64_t n_cols, unsigned seed) {
    return Matrix(type, random_blocks(type, n_rows, n_cols, seed).data(), n_rows, n_cols);
}

// Two layers with random weights, a cache for one text, and what it answers when it is alone.
class Model {
  public:
    static constexpr int64_t kDim = 64, kHidden = 128, kVocab = 96, kContext = 512;

    explicit Model(Type type) : positions_(random_numbers(kContext * kDim, 1)) {
        const auto weights = [&](int64_t m, int64_t k) {
            return random_matrix(type, m, k, static_cast<unsigned>(m + k));
        };
        const auto norm = [&](Value x) {
            return graph_.layer_norm(x, Numbers(kDim, 1.0f), Numbers(kDim, 0.1f), 1e-5f);
        };
        const Heads heads{4, 1, kDim / 4, type == Type::BF16 || type == Type::Q4_0};
        const auto bias = [](int64_t m) { return random_numbers(m, 3); };
        constexpr auto kPlain = Activation::None;
        Value x = graph_.embed(weights(kVocab, kDim), positions_.data());
        for (int layer = 0; layer < kLayers; ++layer) {
            const auto qkv = graph_.linear(weights(heads.row(), kDim), norm(x), bias(heads.row()),
                                           kPlain, kNone);
            const auto attended = graph_.attention(qkv, heads);
            x = graph_.linear(weights(kDim, kDim), attended, bias(kDim), kPlain, x);
            const auto up = graph_.linear(weights(kHidden, kDim), norm(x), bias(kHidden),
                                          Activation::GeluTanh, kNone);
            x = graph_.linear(weights(kDim, kHidden), up, bias(kDim), kPlain, x);
        }
        graph_.linear(weights(kVocab, kDim), norm(graph_.select(x)), {}, kPlain, kNone);
        block_len_ = heads.width() * 16;
        const int64_t runs = kContext / 16 / Cache::kRun;
        keys_.resize(static_cast<size_t>(runs * kLayers * Cache::kRun * block_len_));
        values_.resize(keys_.size());
        for (int32_t i = 0; i < kContext / 16; ++i) table_.push_back(i);
        alone_ = answer();
    }

    bool answers_as_alone() { return answer() == alone_; }

  private:
    static constexpr int64_t kLayers = 2, kCalls = 9;

    // The logits (kCalls, kVocab) behind a text of two parts of 256 keys, and behind each of a few
    // tokens more.
    Numbers answer() {
        Numbers logits(kCalls * kVocab);
        run(0, 270, logits.data());
        for (int32_t i = 1; i < kCalls; ++i) run(269 + i, 1, logits.data() + i * kVocab);
        return logits;
    }

    void run(int32_t first, int32_t n, float* logits) {
        std::vector<int32_t> tokens, positions;
        for (int32_t i = first; i < first + n; ++i) {
            tokens.push_back(i * 7 % kVocab);
            positions.push_back(i);
        }
        const int32_t starts[] = {0, n}, selected[] = {n - 1};
        const Rows rows{positions.data(), starts, table_.data(), 1, kContext / 16};
        graph_.run({n, tokens.data(), rows, 1, selected,
                    Cache::of(keys_.data(), values_.data(), block_len_, kLayers)},
                   logits);
    }

    Numbers positions_, alone_;
    Graph graph_;
    int64_t block_len_;
    std::vector<uint16_t> keys_, values_;
    std::vector<int32_t> table_;
};

std::atomic<bool> stop{false}, wrong{false};
std::atomic<int> n_answers{0}, n_packed{0}, n_searches{0}, n_children{0}, n_stuck{0};
constexpr unsigned kPatience = 8;  // seconds

void expect(bool right, const char* what) {
    if (right) return;
    std::fprintf(stderr, "threads_stress: %s\n", what);
    wrong = stop = true;
}

// From a thread of its own each time, as servers do: nothing may refer to one that has ended.
void answer_always(Model& model) {
    for (; !stop; ++n_answers) {
        std::thread thread(
            [&] { expect(model.answers_as_alone(), "an answer has other bits than the first"); });
        thread.join();
    }
}

void pack_always() {
    const auto blocks = random_blocks(Type::Q4_K, 512, 512, 5);
    std::vector<Matrix> kept;
    for (int i = 0; !stop; ++i, ++n_packed) {
        kept.emplace_back(Type::Q4_K, blocks.data(), 512, 512);
        if (i % 16 == 0) kept.clear();
        if (i % 4 == 0) huge_pages().collapse(0.001);
        huge_pages().begin_small(i % 8 == 0);
    }
}

// Short calls, each with another number of threads.
void search_always() {
    Numbers x = random_numbers(100'000, 6);
    x[99'000] = 1.0f / 0.0f;
    const auto n = static_cast<int64_t>(x.size());
    for (int i = 0; !stop; ++i, ++n_searches) {
        set_n_threads(1 + i % 4);
        expect(first_non_finite(Type::F32, x.data(), n) == 99'000, "an infinite weight is missed");
    }
}

// A child has none of the parent's threads, and answers all the same, from a model that another
// thread is asking, too. ThreadSanitizer of GCC 12 does not hold the locks of its own allocator
// over a fork: a child that finds one of them locked hangs in there, and is ended and counted.
// tests/test_threads.py, without it, forgives none.
void fork_always(Model& idle, Model& busy) {
    for (; !stop; ++n_children) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(kPatience);
            _exit(idle.answers_as_alone() && busy.answers_as_alone() ? 0 : 1);
        }
        int status = -1;
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
            ++n_stuck;
        else
            expect(status == 0, "a forked child gives another answer, or none");
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

}  // namespace

// A child of a process with threads may start some too, and a report ends it as it ends its parent.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0:halt_on_error=1"; }

int main(int argc, char** argv) {
    const double seconds = argc > 1 ? std::atof(argv[1]) : 5;
    for (const Isa* isa : available_isas()) {
        use_isa(isa->name);
        stop = false;
        Model first(Type::Q4_0), second(Type::F32), idle(Type::Q8_0);
        std::vector<std::thread> threads;
        threads.emplace_back(answer_always, std::ref(first));
        threads.emplace_back(answer_always, std::ref(second));
        threads.emplace_back(pack_always);
        threads.emplace_back(search_always);
        threads.emplace_back(fork_always, std::ref(idle), std::ref(first));
        std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
        stop = true;
        for (std::thread& thread : threads) thread.join();
        expect(n_stuck == 0 || n_stuck < n_children, "all children hang");
        std::printf("%s: %d answers, %d matrices, %d searches, %d children, %d of them ended\n",
                    isa->name, n_answers.exchange(0), n_packed.exchange(0), n_searches.exchange(0),
                    n_children.exchange(0), n_stuck.exchange(0));
        if (wrong) return 1;
    }
}
