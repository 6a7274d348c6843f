// The functions that a model applies to the results of a product.
#pragma once

namespace starcoder {

#define STARCODER_ACTIVATIONS(X) \
    X(None, 0, "none")           \
    X(GeluTanh, 1, "gelu_tanh")  \
    X(GeluErf, 2, "gelu_erf")    \
    X(Silu, 3, "silu")

enum class Activation : int {
#define X(name, number, text) name = number,
    STARCODER_ACTIVATIONS(X)
#undef X
};

constexpr const char* name_of(Activation activation) {
    switch (activation) {
#define X(name, number, text) \
    case Activation::name: return text;
        STARCODER_ACTIVATIONS(X)
#undef X
    }
    return "";
}

}  // namespace starcoder
