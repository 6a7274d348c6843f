"""The slow twins: the operations of the core once more in numpy, under the same names.

A fast operation is right where it equals its twin. `graph` runs a graph with either.
"""

from tests.reference.decode import CODEBOOK, dequantize, packed
from tests.reference.encode import quantize
from tests.reference.ops import (
    attention,
    embed,
    gated,
    layer_norm,
    linear,
    quantize_activations,
    rms_norm,
    rotate,
    store_kv,
)

__all__ = [
    "CODEBOOK",
    "attention",
    "dequantize",
    "embed",
    "gated",
    "layer_norm",
    "linear",
    "packed",
    "quantize",
    "quantize_activations",
    "rms_norm",
    "rotate",
    "store_kv",
]
