// Replays a tape: calls of the core that another machine recorded, with its answers.
// helpers/tape.py says what a tape is made of; replay_calls.cpp calls the core.
//
//   replay TAPE
//
// Prints the instruction set and the number of calls. Answers with other bits are told on stderr,
// and it ends with 1. STARCODER_ISA names an instruction set other than the best.
#include "replay.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "simd/isa.h"
#include "sys/threads.h"

namespace replay {
namespace {

size_t item_bytes(int64_t dtype) {
    constexpr size_t kBytes[] = {1, 4, 4, 2};
    return kBytes[dtype];
}

// Whether one number has the same bits. Which not-a-number it is, CPUs choose.
bool is_same(const uint8_t* found, const char* expected, int64_t dtype) {
    if (std::memcmp(found, expected, item_bytes(dtype)) == 0) return true;
    float a, b;
    if (dtype != 2) return false;
    std::memcpy(&a, found, 4), std::memcpy(&b, expected, 4);
    return std::isnan(a) && std::isnan(b);
}

class Player {
  public:
    explicit Player(std::vector<uint8_t> tape) : tape_(std::move(tape)) {}

    int n_calls = 0, n_different = 0;

    void play() {
        while (at_ < tape_.size()) {
            play_one();
            ++n_calls;
        }
    }

  private:
    void play_one() {
        name_ = text(), label_ = text();
        answers_.clear();
        Args args(static_cast<size_t>(number()));
        for (Value& arg : args) arg = value();
        const Function function = function_named(name_);
        if (!function) {
            std::fprintf(stderr, "replay: no function %.*s\n", length(name_), name_.data());
            std::exit(2);
        }
        const Value found = function(args), expected = value();
        const bool same = found.kind == expected.kind && found.number == expected.number &&
                          found.real == expected.real;
        if (!same) tell("another result");
        for (const Value& arg : args) compare(arg);
    }

    void compare(const Value& arg) {
        const size_t bytes = item_bytes(arg.dtype);
        for (size_t at = 0; at < arg.expected.size(); at += bytes) {
            const uint8_t* found = arg.data + at;
            const char* expected = arg.expected.data() + at;
            if (is_same(found, expected, arg.dtype)) continue;
            return tell("at " + std::to_string(at / bytes) + " found bits " + hex(found, bytes) +
                        ", expected " + hex(expected, bytes));
        }
    }

    static std::string hex(const void* number, size_t bytes) {
        uint32_t bits = 0;
        std::memcpy(&bits, number, bytes);
        char text[9];
        std::snprintf(text, sizeof(text), "%08x", bits);
        return text;
    }

    void tell(const std::string& what) {
        std::fprintf(stderr, "%.*s %.*s: %s\n", length(name_), name_.data(), length(label_),
                     label_.data(), what.c_str());
        ++n_different;
    }

    Value value() {
        Value value;
        value.kind = static_cast<Kind>(number());
        switch (value.kind) {
            case Kind::None: break;
            case Kind::Float: std::memcpy(&value.real, take(8), 8); break;
            case Kind::Array: {
                value.data = const_cast<uint8_t*>(array(value));
                break;
            }
            case Kind::Answer: {
                const uint8_t* bytes = array(value);
                value.expected = {reinterpret_cast<const char*>(bytes), n_bytes(value)};
                value.data = answers_.emplace_back(n_bytes(value), uint8_t{0xff}).data();
                break;
            }
            case Kind::State: {
                std::vector<uint8_t>& state = states_[number()];
                const uint8_t* bytes = array(value);
                if (bytes) value.expected = {reinterpret_cast<const char*>(bytes), n_bytes(value)};
                state.resize(n_bytes(value));
                value.data = state.data();
                break;
            }
            default: value.number = number();
        }
        return value;
    }

    static int length(std::string_view text) { return static_cast<int>(text.size()); }
    static size_t n_bytes(const Value& value) {
        size_t n = item_bytes(value.dtype);
        for (const int64_t axis : value.shape) n *= static_cast<size_t>(axis);
        return n;
    }

    // Fills in dtype and shape; null if no bytes are there.
    const uint8_t* array(Value& value) {
        value.dtype = number();
        value.shape.resize(static_cast<size_t>(number()));
        for (int64_t& axis : value.shape) axis = number();
        const std::string_view bytes = text();
        return bytes.empty() ? nullptr : reinterpret_cast<const uint8_t*>(bytes.data());
    }
    std::string_view text() {
        const auto n = static_cast<size_t>(number());
        return {reinterpret_cast<const char*>(take((n + 7) / 8 * 8)), n};
    }
    int64_t number() {
        int64_t n;
        std::memcpy(&n, take(8), 8);
        return n;
    }
    const uint8_t* take(size_t n) {
        if (tape_.size() - at_ < n) {
            std::fprintf(stderr, "replay: the tape ends in the middle of a call\n");
            std::exit(2);
        }
        at_ += n;
        return tape_.data() + at_ - n;
    }

    std::vector<uint8_t> tape_;
    size_t at_ = 0;
    std::string_view name_, label_;
    std::vector<std::vector<uint8_t>> answers_;
    std::map<int64_t, std::vector<uint8_t>> states_;
};

std::vector<uint8_t> read_file(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (!file) std::exit(2);
    std::fseek(file, 0, SEEK_END);
    std::vector<uint8_t> data(static_cast<size_t>(std::ftell(file)));
    std::rewind(file);
    if (std::fread(data.data(), 1, data.size(), file) != data.size()) std::exit(2);
    std::fclose(file);
    return data;
}

}  // namespace
}  // namespace replay

int main(int argc, char** argv) {
    const char* wanted = std::getenv("STARCODER_ISA");
    if (argc != 2 || (wanted && !starcoder::use_isa(wanted))) return 2;
    starcoder::set_n_threads(2);
    replay::Player player(replay::read_file(argv[1]));
    player.play();
    std::printf("%s %d\n", starcoder::isa().name, player.n_calls);
    return player.n_different ? 1 : 0;
}
