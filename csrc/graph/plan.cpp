#include "graph/plan.h"

#include <algorithm>

namespace starcoder {

namespace {

bool is_norm(const Step& step) { return step.op == Op::LayerNorm || step.op == Op::RmsNorm; }

// How often each value is read; and how often as the inputs of a product.
struct Readers {
    std::vector<int> all, products;

    explicit Readers(const Steps& steps) : all(steps.size()), products(steps.size()) {
        for (const Step& step : steps) {
            for (const Value v : step.inputs) ++all[static_cast<size_t>(v)];
            if (step.op == Op::Linear) ++products[static_cast<size_t>(step.inputs[0])];
        }
    }
};

// The input whose memory a step may write its result to, as it reads no other place of it later.
Value overwritable(const Step& step) {
    switch (step.op) {
        case Op::Linear: return step.inputs.size() > 1 ? step.inputs[1] : kNone;
        case Op::Gated:
        case Op::Rotate: return step.inputs[0];
        case Op::Embed:
        case Op::LayerNorm:
        case Op::RmsNorm:
        case Op::Attention:
        case Op::Concat:
        case Op::Select: return kNone;
    }
    return kNone;
}

// The last step that reads each value.
std::vector<size_t> last_readers(const Steps& steps, const std::vector<Fused>& fused) {
    std::vector<size_t> last(steps.size(), 0);
    for (size_t i = 0; i < steps.size(); ++i)
        if (!fused[i].is_folded)
            for (const Value v : fused[i].inputs) last[static_cast<size_t>(v)] = i;
    return last;
}

// Memory of results that no later step reads.
class FreeList {
  public:
    void add(int64_t nbytes, uint8_t* at) { pieces_.push_back({nbytes, at}); }

    uint8_t* take(int64_t nbytes, Cutter& cutter) {
        const auto fits = std::find_if(pieces_.begin(), pieces_.end(),
                                       [&](const Piece& piece) { return piece.nbytes == nbytes; });
        if (fits == pieces_.end()) return cutter.take<uint8_t>(nbytes);
        uint8_t* const at = fits->at;
        pieces_.erase(fits);
        return at;
    }

  private:
    struct Piece {
        int64_t nbytes;
        uint8_t* at;
    };
    std::vector<Piece> pieces_;
};

}  // namespace

std::vector<Fused> fuse(const Steps& steps) {
    const Readers readers(steps);
    std::vector<Fused> fused(steps.size());
    for (size_t i = 0; i < steps.size(); ++i) {
        const Step& step = steps[i];
        fused[i].inputs = step.inputs;
        if (is_norm(step))
            fused[i].is_folded = readers.all[i] > 0 && readers.all[i] == readers.products[i];
        if (step.op != Op::Linear) continue;
        const Value x = step.inputs[0];
        const auto from = static_cast<size_t>(x);
        if (fused[from].is_folded) {
            fused[i].norm = x;
            fused[i].inputs[0] = fused[from].inputs[0];
        } else if (steps[from].op == Op::Linear && steps[from].inputs.size() == 1 &&
                   readers.all[from] == 1 && quantized_bytes(*step.weights.matrix, 1) > 0) {
            fused[from].reader = static_cast<Value>(i);
        }
    }
    return fused;
}

const Matrix* reader_of(const Steps& steps, const Fused& fused) {
    return fused.reader == kNone ? nullptr : &*at(steps, fused.reader).weights.matrix;
}

int64_t result_bytes(const Steps& steps, const std::vector<Fused>& fused, size_t i, Shape shape) {
    const Step& step = steps[i];
    const int64_t n = shape.rows(step);
    if (const Matrix* reader = reader_of(steps, fused[i]))
        return static_cast<int64_t>(quantized_bytes(*reader, n));
    return n * step.width * int64_t{sizeof(float)};
}

std::vector<uint8_t*> place(const Steps& steps, const std::vector<Fused>& fused, Shape shape,
                            uint8_t* out, Cutter& cutter) {
    const std::vector<size_t> last = last_readers(steps, fused);
    const auto index = [](Value v) { return static_cast<size_t>(v); };
    const auto nbytes = [&](size_t i) { return result_bytes(steps, fused, i, shape); };
    std::vector<uint8_t*> at(steps.size(), nullptr);
    FreeList free;
    for (size_t i = 0; i < steps.size(); ++i) {
        if (fused[i].is_folded) continue;
        const std::vector<Value>& inputs = fused[i].inputs;
        const Value over = overwritable(steps[i]);
        const bool reuses = over != kNone && last[index(over)] == i &&
                            std::count(inputs.begin(), inputs.end(), over) == 1;
        if (i + 1 == steps.size())
            at[i] = out;
        else if (reuses)
            at[i] = at[index(over)];
        else
            at[i] = free.take(nbytes(i), cutter);
        for (auto j = inputs.begin(); j != inputs.end(); ++j) {
            const Value v = *j;
            const bool is_again = std::find(inputs.begin(), j, v) != j;
            if (!is_again && last[index(v)] == i && !(reuses && v == over))
                free.add(nbytes(index(v)), at[index(v)]);
        }
    }
    return at;
}

}  // namespace starcoder
