// The steps of a model as text, as `starcoder inspect --graph` prints them.
#include <sstream>

#include "graph/ir.h"
#include "graph/plan.h"

namespace starcoder {

const char* name_of(Op op) {
    switch (op) {
        case Op::Embed: return "embed";
        case Op::LayerNorm: return "layer_norm";
        case Op::RmsNorm: return "rms_norm";
        case Op::Rotate: return "rotate";
        case Op::Linear: return "linear";
        case Op::Gated: return "gated";
        case Op::Attention: return "attention";
        case Op::Concat: return "concat";
        case Op::Select: return "select";
    }
    return "";
}

namespace {

void write_step(std::ostream& out, const Steps& steps, const std::vector<Fused>& fused, size_t i) {
    const Step& step = steps[i];
    const auto& [matrix, scale, bias, table] = step.weights;
    const Numbers& numbers = step.numbers;
    out << '%' << i << " = " << name_of(step.op);
    for (const Value v : step.inputs) out << " %" << v;
    if (matrix)
        out << "  [" << matrix->n_rows() << " x " << matrix->n_cols() << ' '
            << name_of(matrix->type()) << ']';
    if (step.op == Op::Linear && !bias.empty()) out << " bias";
    if (step.op == Op::Embed && table) out << " positions";
    if (numbers.activation != Activation::None) out << ' ' << name_of(numbers.activation);
    if (step.op == Op::Linear && step.inputs.size() > 1) out << " residual";
    if (numbers.eps > 0) out << "  eps " << numbers.eps;
    if (step.op == Op::Attention || step.op == Op::Rotate)
        out << "  " << numbers.heads.n_heads << " heads on " << numbers.heads.n_kv_heads
            << " of keys and values";
    if (step.op == Op::Attention)
        out << (numbers.heads.bf16 ? ", bf16" : ", f32") << ", layer " << numbers.layer;
    out << "  -> " << step.width;
    if (step.selected) out << " of the selected rows";
    if (fused[i].is_folded) out << "; folded into the products that take it";
    if (fused[i].reader != kNone) out << "; quantized for %" << fused[i].reader;
    out << '\n';
}

}  // namespace

std::string to_text(const Steps& steps) {
    const std::vector<Fused> fused = fuse(steps);
    std::ostringstream out;
    for (size_t i = 0; i < steps.size(); ++i) write_step(out, steps, fused, i);
    return out.str();
}

}  // namespace starcoder
