// What a run does with the steps of a model: which are fused, and where results lie.
#pragma once

#include <cstdint>
#include <vector>

#include "graph/ir.h"
#include "sys/scratch.h"

namespace starcoder {

// What fusing makes of a step.
struct Fused {
    bool is_folded = false;     // a norm: the products that take it compute it themselves
    Value norm = kNone;         // of a product: the norm that is folded into it
    std::vector<Value> inputs;  // of the step, those of a folded norm in its place
    Value reader = kNone;       // the one product that takes the result, quantized for it
};

// Folds norms into the products that take them, where nothing else does; and lets a product that
// only one other takes, as it is, leave its result quantized for that one.
std::vector<Fused> fuse(const Steps& steps);

// Rows of a batch: of all tokens, and those selected.
struct Shape {
    int64_t n, n_selected;
    int64_t rows(const Step& step) const { return step.selected ? n_selected : n; }
};

// The weights that a step's result is quantized for; null: it is floats.
const Matrix* reader_of(const Steps& steps, const Fused& fused);

// Bytes of the result of step i.
int64_t result_bytes(const Steps& steps, const std::vector<Fused>& fused, size_t i, Shape shape);

// Where each result lies; the last step's at `out`. Memory of results that no later step reads any
// more is used again.
std::vector<uint8_t*> place(const Steps& steps, const std::vector<Fused>& fused, Shape shape,
                            uint8_t* out, Cutter& cutter);

}  // namespace starcoder
