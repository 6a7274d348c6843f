// What stands on a tape, as replay.cpp reads it and replay_calls.cpp takes it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace replay {

// As KINDS in helpers/tape.py.
enum class Kind : int64_t { None, Int, Bool, Float, Object, Array, Answer, State };

struct Value {
    Kind kind = Kind::None;
    int64_t number = 0;
    double real = 0;
    int64_t dtype = 0;  // u8, i32, f32, u16
    std::vector<int64_t> shape;
    uint8_t* data = nullptr;    // what a call reads or fills
    std::string_view expected;  // what must come out; empty: nobody compares

    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data);
    }
    const float* floats() const { return as<const float>(); }
    std::vector<float> copy() const {
        return data ? std::vector<float>(floats(), floats() + shape[0]) : std::vector<float>();
    }
};

using Args = std::vector<Value>;
using Function = Value (*)(const Args&);

// The function of the core with this name; null if there is none.
Function function_named(std::string_view name);

}  // namespace replay
