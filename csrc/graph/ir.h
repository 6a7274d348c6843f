// A model as data: a list of steps, each an operation, its inputs, weights and numbers.
//
// Nothing is computed here, and no batch is known. plan.h decides what can be decided from the
// steps alone, run.cpp runs them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"

namespace starcoder {

enum class Op { Embed, LayerNorm, RmsNorm, Rotate, Linear, Gated, Attention, Concat, Select };

// The result of a step: rows of floats, for every token or for every selected one. It has the
// step's number in the list.
using Value = int;
inline constexpr Value kNone = -1;

struct Weights {
    std::optional<Matrix> matrix = {};  // Embed, Linear
    std::vector<float> scale = {};      // (k) of norms
    std::vector<float> bias = {};       // (k) of norms, (m) of Linear
    const float* table = nullptr;       // rows for positions: embeddings of Embed, cosines and
                                        // sines of Rotate; not copied
};

struct Numbers {
    float eps = 0;                             // of norms
    Activation activation = Activation::None;  // Linear, Gated
    Heads heads{};                             // Rotate, Attention
    int layer = 0;                             // of the cache
};

struct Step {
    Op op;
    std::vector<Value> inputs;  // of Linear: x, and perhaps a residual; of Gated: gate, up
    Weights weights = {};
    Numbers numbers = {};
    int64_t width = 0;  // of a row of the result
    bool selected =
        false;  // the result has a row for every selected row, otherwise for every token
};

using Steps = std::vector<Step>;

inline const Step& at(const Steps& steps, Value v) { return steps[static_cast<size_t>(v)]; }

const char* name_of(Op op);

// A line for each step: what it takes, and what the plan makes of it.
std::string to_text(const Steps& steps);

}  // namespace starcoder
