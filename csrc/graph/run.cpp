// The steps of a model, one after the other, as operations of kernels.h.
#include "graph/run.h"

#include <algorithm>

namespace starcoder {

namespace {

Shape shape_of(const Batch& batch) { return {batch.n, batch.n_selected}; }

const float* data_or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

Norm norm_of(const Step& step) {
    return {step.weights.scale.data(), data_or_null(step.weights.bias), step.numbers.eps};
}

}  // namespace

void Runner::append(size_t i, const Frame& frame, Schedule& schedule) const {
    const Step& step = steps_[i];
    const Fused& fused = fused_[i];
    const Batch& batch = frame.batch;
    const auto& [matrix, scale, bias, table] = step.weights;
    const Numbers& numbers = step.numbers;
    const int64_t n = shape_of(batch).rows(step);
    const auto input = [&](size_t j) {
        return j < fused.inputs.size() ? frame.floats(fused.inputs[j]) : nullptr;
    };
    float* const y = reinterpret_cast<float*>(frame.at[i]);

    switch (step.op) {
        case Op::Embed:
            return embed(schedule, *matrix, batch.tokens, n, table, batch.rows.positions, y);
        case Op::LayerNorm:
        case Op::RmsNorm:
            if (fused.is_folded) return;
            return norm(schedule, input(0), norm_of(step), n, step.width, y);
        case Op::Linear: {
            auto* const quantized = reinterpret_cast<ActivationGroup*>(frame.at[i]);
            const Matrix* const reader = reader_of(steps_, fused);
            const Output output =
                reader ? Output{nullptr, quantized, reader} : Output{y, nullptr, nullptr};
            return linear(schedule, *matrix, input_of(i, frame), n, data_or_null(bias),
                          numbers.activation, input(1), output, frame.shared);
        }
        case Op::Gated:
            return gated(schedule, input(0), input(1), n, step.width, numbers.activation, y);
        case Op::Concat: {
            int64_t column = 0;
            for (size_t j = 0; j < step.inputs.size(); ++j) {
                const int64_t k = at(steps_, step.inputs[j]).width;
                copy_columns(schedule, input(j), n, k, y + column, step.width);
                column += k;
            }
            return;
        }
        case Op::Rotate:
            return rotate(schedule, input(0), n, numbers.heads, batch.rows.positions, table, y);
        case Op::Attention: {
            const Cache cache = batch.cache.layer(numbers.layer);
            store_kv(schedule, input(0), n, numbers.heads, batch.rows, cache);
            return attention(schedule, input(0), n, numbers.heads, batch.rows, cache, y,
                             frame.shared);
        }
        case Op::Select: return select(schedule, input(0), batch.selected, n, step.width, y);
    }
}

// What product i takes.
Input Runner::input_of(size_t i, const Frame& frame) const {
    const auto x = static_cast<size_t>(fused_[i].inputs[0]);
    if (fused_[x].reader != kNone)
        return {nullptr, {}, reinterpret_cast<const ActivationGroup*>(frame.at[x])};
    const auto* floats = reinterpret_cast<const float*>(frame.at[x]);
    if (fused_[i].norm == kNone) return {floats, {}, nullptr};
    return {floats, norm_of(at(steps_, fused_[i].norm)), nullptr};
}

// Memory that the threads of step i share.
size_t Runner::scratch_bytes(size_t i, const Batch& batch, int n_threads) const {
    const Step& step = steps_[i];
    switch (step.op) {
        case Op::Linear:
            if (fused_[static_cast<size_t>(fused_[i].inputs[0])].reader != kNone) return 0;
            return linear_scratch(*step.weights.matrix, shape_of(batch).rows(step));
        case Op::Attention:
            return attention_scratch(batch.n, step.numbers.heads, batch.rows, n_threads);
        case Op::Embed:
        case Op::LayerNorm:
        case Op::RmsNorm:
        case Op::Rotate:
        case Op::Gated:
        case Op::Concat:
        case Op::Select: return 0;
    }
    return 0;
}

}  // namespace starcoder
