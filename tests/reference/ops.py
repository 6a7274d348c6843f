"""The operations of the core, in numpy: slow, obvious, and written without a look at the fast ones.

Weights are a Tensor rather than a packed Matrix. Arithmetic is float64, but for what is rounded on
purpose: activations to 8 bits, scales of 4-bit weights to int16, keys and values to f16, or
all that attention multiplies to bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.core.tensor import Tensor, TensorType
from tests.reference.decode import dequantize, from_bf16, packed
from tests.reference.encode import quantize, to_bf16

__all__ = [
    "attention",
    "embed",
    "gated",
    "layer_norm",
    "linear",
    "quantize_activations",
    "rms_norm",
    "rotate",
    "store_kv",
]

Floats = NDArray[np.float32]
KV = NDArray[np.float16] | NDArray[np.uint16]  # f16, or the bits of bf16: see `operations.store_kv`
Array = NDArray[Any]

GROUP = 128  # inputs that share one scale when activations are rounded to 8 bits
PART = 256  # keys that have a softmax of their own


def quantize_activations(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """x (n, k) in 8 bits (n, k), and the scale of every 128 inputs (n, ceil(k / 128)).

    The scale is NaN if one of them is not finite.
    """
    n, k = x.shape
    padded = np.zeros((n, -(-k // GROUP), GROUP), np.float32)
    padded.reshape(n, -1)[:, :k] = x
    top = np.abs(padded).max(axis=2)
    usual = np.isfinite(top) & (top >= 1e-30)
    inverse = np.divide(np.float32(127), top, out=np.zeros_like(top), where=usual)
    q = np.zeros(padded.shape, np.int8)
    q[usual] = np.rint(padded[usual] * inverse[usual, None])
    scales = np.where(usual, top / np.float32(127), np.where(np.isfinite(top), 0, np.nan))
    return q.reshape(n, -1)[:, :k], scales.astype(np.float32)


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _gelu_erf(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


_ACTIVATIONS: dict[str | None, Callable[[Array], Array]] = {
    None: lambda x: x,
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
    "silu": _silu,
}


def linear(
    x: Floats,
    w: Tensor,
    bias: Floats | None = None,
    *,
    activation: str | None = None,
    residual: Floats | None = None,
) -> Floats:
    """(n, m): activation(x @ w.T + bias) + residual.

    x is rounded to 8 bits if w is quantized, and to bf16 if w is.
    """
    inputs: Array = x.astype(np.float64)
    if w.type is TensorType.BF16:
        inputs = dequantize(quantize(x, TensorType.BF16)).astype(np.float64)
    if w.type.block_len > 1:
        q, scales = quantize_activations(x)
        inputs = q * np.repeat(scales.astype(np.float64), GROUP, axis=1)[:, : x.shape[1]]
    y = inputs @ packed(w).astype(np.float64).T
    y = _ACTIVATIONS[activation](y if bias is None else y + bias)
    return (y if residual is None else y + residual).astype(np.float32)


def embed(ids: NDArray[np.int32], w: Tensor) -> Floats:
    """(n, k): the rows `ids` (n) of w (m, k)."""
    return packed(w)[ids]


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """(n, k): each row of x (n, k) with mean 0 and variance 1, times weight (k), plus bias (k)."""
    wide = x.astype(np.float64)
    centered = wide - wide.mean(axis=1, keepdims=True)
    variance = (centered**2).mean(axis=1, keepdims=True)
    return (centered / np.sqrt(variance + eps) * weight + bias).astype(np.float32)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """(n, k): each row of x (n, k) with mean square 1, times weight (k). To the bit.

    Sums along a row go through sixteen partial sums, folded 8, 4, 2, 1.
    """
    n, k = x.shape
    squares = np.zeros((n, -(-k // 16), 16), np.float32)
    squares.reshape(n, -1)[:, :k] = x * x
    sums = np.zeros((n, 16), np.float32)
    for part in squares.transpose(1, 0, 2):
        sums += part
    while sums.shape[1] > 1:
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    scale = np.float32(1) / np.sqrt(sums / np.float32(k) + np.float32(eps))
    return np.asarray(x * scale * weight, np.float32)


def gated(gate: Floats, up: Floats, activation: str | None = "silu") -> Floats:
    """(n, m): activation(gate) * up, both (n, m)."""
    return (_ACTIVATIONS[activation](gate.astype(np.float64)) * up).astype(np.float32)


def rotate(qkv: Floats, n_heads: int, n_kv_heads: int, batch: Batch, table: Floats) -> Floats:
    """qkv (n, queries | keys | values), queries and keys turned by their positions.

    Numbers j and j + d / 2 of a head are a point in the plane; `table` (n_positions, 2, d / 2) has
    the cosines and the sines of its angles. To the bit.
    """
    heads = qkv.reshape(len(qkv), n_heads + 2 * n_kv_heads, 2, -1)
    a, b = heads[:, : n_heads + n_kv_heads].transpose(2, 0, 1, 3)
    cosines, sines = table[batch.positions].transpose(1, 0, 2)[:, :, None]
    out = heads.copy()
    out[:, : n_heads + n_kv_heads, 0] = a * cosines - b * sines
    out[:, : n_heads + n_kv_heads, 1] = b * cosines + a * sines
    return out.reshape(qkv.shape)


def _rows(batch: Batch) -> Iterator[tuple[int, int, Array]]:
    """(row, position, block table) of each token."""
    for s, table in enumerate(batch.block_tables):
        for row in range(batch.row_starts[s], batch.row_starts[s + 1]):
            yield row, int(batch.positions[row]), table


def _bf16_bits(x: Array) -> NDArray[np.uint16]:
    """To nearest even; what is smaller than 2^-126 becomes 0, or -0."""
    floats = np.ascontiguousarray(x, np.float32)
    bits = to_bf16(floats, False).view(np.uint16)
    return np.where(np.abs(floats) < 2.0**-126, bits & 0x8000, bits).astype(np.uint16)


def _from_bits(bits: NDArray[np.uint16]) -> Array:
    return from_bf16(np.ascontiguousarray(bits).view(np.uint8)).astype(np.float64)


def _rounded(x: Array, bf16: bool) -> Array:
    return _from_bits(_bf16_bits(x)) if bf16 else x


def store_kv(qkv: Floats, n_heads: int, batch: Batch, keys: KV, values: KV) -> None:
    """Writes the keys and values of qkv (n, queries | keys | values) into one layer's cache."""
    n_kv_heads, width = keys.shape[1:3]
    parts = qkv.reshape(len(qkv), n_heads + 2 * n_kv_heads, -1)  # (n, heads, head_dim)
    head_dim = parts.shape[2]
    bf16 = keys.dtype == np.uint16
    if bf16:
        keys = keys.reshape(-1, n_kv_heads, width // 2, BLOCK_LEN, 2)
        values = values.reshape(-1, n_kv_heads, BLOCK_LEN // 2, width, 2)
    dims = np.arange(head_dim)
    for row, position, table in _rows(batch):
        block, slot = table[position // BLOCK_LEN], position % BLOCK_LEN
        k, v = parts[row, n_heads : n_heads + n_kv_heads], parts[row, n_heads + n_kv_heads :]
        if bf16:
            keys[block][:, dims // 2, slot, dims % 2] = _bf16_bits(k).reshape(k.shape)
            values[block][:, slot // 2, :head_dim, slot % 2] = _bf16_bits(v).reshape(v.shape)
        else:
            keys[block, :, :head_dim, slot] = k
            values[block, :, slot, :head_dim] = v


def _read_kv(
    keys: KV, values: KV, positions: Array, table: Array, head: int, head_dim: int
) -> tuple[Array, Array]:
    """Keys and values (positions, head_dim) of one head, as float64."""
    blocks, slots = table[positions // BLOCK_LEN], positions % BLOCK_LEN
    if keys.dtype == np.float16:
        k, v = keys[blocks, head, :head_dim, slots], values[blocks, head, slots, :head_dim]
        return k.astype(np.float64), v.astype(np.float64)
    width = keys.shape[2]
    k = keys[blocks, head].reshape(-1, width // 2, BLOCK_LEN, 2)
    v = values[blocks, head].reshape(-1, BLOCK_LEN // 2, width, 2)
    each = np.arange(len(positions))
    k = k[each, :, slots].reshape(-1, width)[:, :head_dim]
    v = v[each, slots // 2, :head_dim, slots % 2]
    return _from_bits(k), _from_bits(v)


def attention(qkv: Floats, n_heads: int, batch: Batch, keys: KV, values: KV) -> Floats:
    """(n, n_heads * head_dim): each query over the keys of its sequence up to its own position."""
    n_kv_heads = keys.shape[1]
    parts = qkv.reshape(len(qkv), n_heads + 2 * n_kv_heads, -1)
    head_dim, bf16 = parts.shape[2], keys.dtype == np.uint16
    queries = _rounded(parts / np.float32(math.sqrt(head_dim)), bf16).reshape(parts.shape)
    out = np.empty((len(qkv), n_heads, head_dim), np.float64)
    for row, position, table in _rows(batch):
        for head in range(n_heads):
            shared = head * n_kv_heads // n_heads
            k, v = _read_kv(keys, values, np.arange(position + 1), table, shared, head_dim)
            scores = k @ queries[row, head]
            # Weights are rounded relative to the largest of their part, and summed as they were.
            starts = np.arange(0, position + 1, PART)
            tops = np.maximum.reduceat(scores, starts)
            lengths = np.diff([*starts, position + 1])
            weights = np.exp(scores - np.repeat(tops, lengths))
            share = np.repeat(np.exp(tops - tops.max()), lengths)
            mixed = (_rounded(weights, bf16) * share) @ v
            out[row, head] = mixed / (weights * share).sum()
    return out.reshape(len(qkv), -1).astype(np.float32)
