"""The operations of the core one by one: arrays in, a fresh array out.

A model runs them as a graph; tests call them alone. Every function has a slow twin of the same name
in `reference`. Shapes: n tokens, k inputs, m outputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starcoder import _core
from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.ops import ACTIVATIONS, Matrix

ops.isa()  # chooses the one that STARCODER_ISA names

Floats = NDArray[np.float32]
KV = NDArray[np.float16] | NDArray[np.uint16]


def linear(
    x: Floats,
    w: Matrix,
    bias: Floats | None = None,
    *,
    activation: str | None = None,
    residual: Floats | None = None,
) -> Floats:
    """(n, m): activation(x @ w.T + bias) + residual, from x (n, k), bias (m), residual (n, m)."""
    out = np.empty((len(x), w.n_rows), np.float32)
    _core.testing.linear(w, x, bias, ACTIVATIONS[activation], residual, out)
    return out


def embed(ids: NDArray[np.int32], w: Matrix) -> Floats:
    """(n, k): the rows `ids` (n) of w (m, k)."""
    out = np.empty((len(ids), w.n_cols), np.float32)
    _core.testing.embed(w, ids, out)
    return out


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """(n, k): each row of x (n, k) with mean 0 and variance 1, times weight (k), plus bias (k)."""
    out = np.empty_like(x)
    _core.testing.layer_norm(x, weight, bias, eps, out)
    return out


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """(n, k): each row of x (n, k) with mean square 1, times weight (k)."""
    out = np.empty_like(x)
    _core.testing.rms_norm(x, weight, eps, out)
    return out


def gated(gate: Floats, up: Floats, activation: str | None = "silu") -> Floats:
    """(n, m): activation(gate) * up, both (n, m)."""
    out = np.empty_like(gate)
    _core.testing.gated(gate, up, ACTIVATIONS[activation], out)
    return out


def rotate(qkv: Floats, n_heads: int, n_kv_heads: int, batch: Batch, table: Floats) -> Floats:
    """qkv (n, queries | keys | values), queries and keys turned by their positions.

    `table` (n_positions, 2, head_dim / 2) has the cosines and the sines of the angles.
    """
    out = np.empty_like(qkv)
    _core.testing.rotate(qkv, n_heads, n_kv_heads, batch.positions, table, out)
    return out


def store_kv(qkv: Floats, n_heads: int, batch: Batch, keys: KV, values: KV) -> None:
    """Writes the keys and values of qkv (n, queries | keys | values) into one layer's cache.

    `keys` is (blocks, n_kv_heads, width, BLOCK_LEN), `values` (blocks, n_kv_heads, BLOCK_LEN,
    width), where width is head_dim rounded up to a multiple of 16. They are float16; or uint16, for
    the bits of bf16, with keys in the order (..., width / 2, BLOCK_LEN, 2) and values in the order
    (..., BLOCK_LEN / 2, width, 2): pairs side by side, as products of bf16 take them.
    """
    bits = keys.view(np.uint16), values.view(np.uint16)
    _core.testing.store_kv(qkv, n_heads, *_places(batch), *bits, keys.dtype == np.uint16)


def attention(qkv: Floats, n_heads: int, batch: Batch, keys: KV, values: KV) -> Floats:
    """(n, n_heads * head_dim): each query over the keys of its sequence up to its own position.

    Where keys and values are bf16, queries and weights are rounded to bf16 too.
    """
    head_dim = qkv.shape[1] // (n_heads + 2 * keys.shape[1])
    out = np.empty((len(qkv), n_heads * head_dim), np.float32)
    bits = keys.view(np.uint16), values.view(np.uint16)
    _core.testing.attention(qkv, n_heads, *_places(batch), *bits, keys.dtype == np.uint16, out)
    return out


def _places(batch: Batch) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    return batch.positions, batch.row_starts, batch.block_tables
