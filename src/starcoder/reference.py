"""The kernels again, in numpy: slow, obvious, and written without a look at the fast ones.

The same names as `ops`, with the weights as a Tensor rather than a packed Matrix. Arithmetic is
float64, but for what is rounded on purpose: activations to 8 bits, scales of 4-bit weights to whole
numbers, keys and values to f16, or all that attention multiplies to bf16.
Tests hold `ops` against it; nothing else imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starcoder.batch import BLOCK_LEN, Batch
from starcoder.tensor import Tensor, TensorType

__all__ = [
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

Floats = NDArray[np.float32]
KV = NDArray[np.float16] | NDArray[np.uint16]  # f16, or the bits of bf16: see `ops.store_kv`
Bytes = NDArray[np.uint8]
Array = NDArray[Any]

GROUP = 128  # inputs that share one scale when activations are rounded to 8 bits
PART = 256  # keys that have a softmax of their own

CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)

# ---- what the bytes of each type mean: (blocks, bytes) -> (blocks, weights) ----------------------


def _half(blocks: Bytes, at: int) -> Array:
    """The f16 at byte `at` of each block, as a column."""
    return blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(qs: Bytes) -> Array:
    """(blocks, n) bytes to (blocks, 2 n): all low nibbles, then all high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int32)


def _fifth_bits(qh: Bytes) -> Array:
    """(blocks, 4) bytes to (blocks, 32): bit j stands for weight j, as 16."""
    return np.unpackbits(qh, axis=1, bitorder="little").astype(np.int32) * 16


class _Parts(NamedTuple):
    """Blocks taken apart: weight = d * sc * code - dmin * m."""

    codes: Array  # (blocks, subs, weights)
    d: Array  # (blocks, 1)
    sc: Array  # (blocks, subs), integers in K types
    dmin: Array
    m: Array

    def weights(self) -> Array:
        scales, minima = self.d * self.sc, self.dmin * self.m
        return _flat(self.codes * scales[:, :, None] - minima[:, :, None])


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _q4_0(b: Bytes) -> _Parts:
    one = np.ones((len(b), 1), np.float32)
    return _Parts(_nibbles(b[:, 2:])[:, None] - 8, _half(b, 0), one, 0 * one, 0 * one)


def _q4_1(b: Bytes) -> _Parts:
    one = np.ones((len(b), 1), np.float32)
    return _Parts(_nibbles(b[:, 4:])[:, None], _half(b, 0), one, -_half(b, 2), one)


def _q5_0(b: Bytes) -> Array:
    return _half(b, 0) * (_nibbles(b[:, 6:]) + _fifth_bits(b[:, 2:6]) - 16)


def _q5_1(b: Bytes) -> Array:
    return _half(b, 0) * (_nibbles(b[:, 8:]) + _fifth_bits(b[:, 4:8])) + _half(b, 2)


def _q8_0(b: Bytes) -> Array:
    return _half(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(b: Bytes) -> Array:
    return _half(b, 0) * CODEBOOK[_nibbles(b[:, 2:])]


def _two_bits(qs: Bytes) -> Array:
    """(blocks, 64) to (blocks, 256): 32 bytes hold 128 weights, two bits at a time."""
    halves = qs.reshape(-1, 2, 1, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    return ((halves >> shifts) & 3).reshape(-1, 256).astype(np.int32)


def _q2_k(b: Bytes) -> _Parts:
    codes = _two_bits(b[:, 16:80]).reshape(-1, 16, 16)
    return _Parts(codes, _half(b, 80), b[:, :16] & 15, _half(b, 82), b[:, :16] >> 4)


def _q3_k(b: Bytes) -> _Parts:
    # bit 32 g + l of the mask's transposed bytes is the third bit of weight 32 g + l
    high = np.unpackbits(b[:, :32], axis=1, bitorder="little").reshape(-1, 32, 8)
    codes = _two_bits(b[:, 32:96]) + 4 * high.transpose(0, 2, 1).reshape(-1, 256).astype(np.int32)
    low, top = b[:, 96:104], b[:, 104:108]
    low16 = np.concatenate([low & 15, low >> 4], axis=1)
    top16 = np.concatenate([(top >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (low16 | top16 << 4).astype(np.int32) - 32
    nothing = np.zeros((len(b), 1), np.float32)
    return _Parts(codes.reshape(-1, 16, 16) - 4, _half(b, 108), scales, nothing, nothing)


def _six_bits(b: Bytes) -> tuple[Array, Array]:
    """The eight scales and eight minima in the 12 bytes of a Q4_K or Q5_K block."""
    first, second, third = b[:, 0:4], b[:, 4:8], b[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    minima = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return scales.astype(np.int32), minima.astype(np.int32)


def _pairs(qs: Bytes) -> Array:
    """(blocks, 128) to (blocks, 256): 32 bytes hold 32 weights low, the next 32 high."""
    chunks = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([chunks & 15, chunks >> 4], axis=2).reshape(-1, 256).astype(np.int32)


def _q4_k(b: Bytes) -> _Parts:
    scales, minima = _six_bits(b[:, 4:16])
    return _Parts(_pairs(b[:, 16:]).reshape(-1, 8, 32), _half(b, 0), scales, _half(b, 2), minima)


def _q5_k(b: Bytes) -> Array:
    scales, minima = _six_bits(b[:, 4:16])
    high = np.unpackbits(b[:, 16:48], axis=1, bitorder="little").reshape(-1, 32, 8)
    codes = _pairs(b[:, 48:]) + 16 * high.transpose(0, 2, 1).reshape(-1, 256).astype(np.int32)
    return _Parts(codes.reshape(-1, 8, 32), _half(b, 0), scales, _half(b, 2), minima).weights()


def _q6_k(b: Bytes) -> Array:
    low = b[:, :128].reshape(-1, 2, 1, 64)
    nibbles = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 256).astype(np.int32)
    codes = nibbles + 16 * _two_bits(b[:, 128:192])
    scales = b[:, 192:208].copy().view(np.int8).astype(np.int32)
    nothing = np.zeros((len(b), 1), np.float32)
    return _Parts(codes.reshape(-1, 16, 16) - 32, _half(b, 208), scales, nothing, nothing).weights()


def _f32(b: Bytes) -> Array:
    return b.copy().view(np.float32)


def _f16(b: Bytes) -> Array:
    return b.copy().view(np.float16).astype(np.float32)


def _bf16(b: Bytes) -> Array:
    return (b.copy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)


# Types whose scales become int16 when they are packed.
_INT16: dict[TensorType, Callable[[Bytes], _Parts]] = {
    TensorType.Q4_0: _q4_0,
    TensorType.Q4_1: _q4_1,
    TensorType.Q2_K: _q2_k,
    TensorType.Q3_K: _q3_k,
    TensorType.Q4_K: _q4_k,
}

_WIDEN: dict[TensorType, Callable[[Bytes], Array]] = {
    TensorType.F32: _f32,
    TensorType.F16: _f16,
    TensorType.BF16: _bf16,
    TensorType.Q5_0: _q5_0,
    TensorType.Q5_1: _q5_1,
    TensorType.Q8_0: _q8_0,
    TensorType.IQ4_NL: _iq4_nl,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
}


def dequantize(tensor: Tensor) -> Floats:
    """The floats (rows, columns) that a tensor's blocks stand for."""
    blocks = tensor.data.reshape(-1, tensor.type.block_bytes)
    parts = _INT16.get(tensor.type)
    weights = parts(blocks).weights() if parts else _WIDEN[tensor.type](blocks)
    return weights.astype(np.float32).reshape(tensor.shape)


def packed(tensor: Tensor) -> Floats:
    """The floats (rows, columns) that `ops.pack` keeps of a tensor.

    Those of the file; but scales and minima of types with 4 bits are rounded to whole numbers of a
    unit of their row, as `csrc/types/int16_scales.h` says.
    """
    if tensor.type not in _INT16:
        return dequantize(tensor)
    parts = _INT16[tensor.type](tensor.data.reshape(-1, tensor.type.block_bytes))
    signed = tensor.type in (TensorType.Q4_0, TensorType.Q3_K)
    middle = np.float32(0 if signed else 2 if tensor.type is TensorType.Q2_K else 8)

    scales, minima = parts.d * parts.sc, -parts.dmin * parts.m
    tops = np.maximum(abs(scales), np.float32(0.13) * abs(minima))
    if not signed:
        tops = np.maximum(tops, np.float32(0.26) * abs(scales * middle + minima))
    top = tops.reshape(tensor.shape[0], -1).max(axis=1)
    exponent = np.frexp(top)[1] - 1
    units = np.where(top > 0, np.ldexp(np.float32(1), exponent) / (8192 if signed else 4096), 1)
    units = np.where(np.isfinite(top), units, np.nan).astype(np.float32)
    unit = np.repeat(units, len(tops) // len(units))[:, None]

    def in_units(d: Array) -> Array:
        return np.clip(d / unit, -65504, 65504).astype(np.float16).astype(np.float64)

    nested = parts.sc.dtype != np.float32
    scales = in_units(parts.d) * parts.sc if nested else scales / unit.astype(np.float64)
    minima = -in_units(parts.dmin) * parts.m if nested else minima / unit.astype(np.float64)
    whole = np.rint(scales)
    least = np.rint((scales * middle + minima).astype(np.float32))
    sums = (parts.codes - middle) * whole[:, :, None] + least[:, :, None]
    return (_flat(sums) * unit).astype(np.float32).reshape(tensor.shape)


# ---- floats to bytes, as ggml's reference does it: (blocks, weights) -> (blocks, bytes) ----------


def _over(x: Array) -> Array:
    """1 / x, or 0 where there is no such number."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / x
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _cut(x: Array, inverse: Array, start: float, top: int, fused: bool) -> Array:
    """x * inverse + start, cut off after the point; `fused`: rounded once, not twice."""
    if fused:
        sums = x.astype(np.float64) * inverse + start  # (all but) exact in float64
        return np.clip(sums.astype(np.float32), 0, top).astype(np.int32)
    return np.clip(x * inverse + np.float32(start), 0, top).astype(np.int32)


def _signed_codes(x: Array, zero: int, fused: bool) -> tuple[Bytes, Array]:
    """Scales as bytes and codes of Q4_0, Q5_0: the largest magnitude is code 0."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = (largest + np.float32(0)) / np.float32(-zero)  # of zeros alone: -0
    return _half_bytes(d), _cut(x, _over(d), zero + 0.5, 2 * zero - 1, fused)


def _ranged_codes(x: Array, top: int, fused: bool) -> tuple[Bytes, Array]:
    """Scales and minima as bytes, and codes, of Q4_1, Q5_1."""
    low = np.take_along_axis(x, x.argmin(axis=1)[:, None], axis=1)  # the first: -0 or +0
    high = np.take_along_axis(x, x.argmax(axis=1)[:, None], axis=1)
    d = (high - low) / np.float32(top)
    scales = np.concatenate([_half_bytes(d), _half_bytes(low)], axis=1)
    return scales, _cut(x - low, _over(d), 0.5, top, fused)


def _half_bytes(d: Array) -> Bytes:
    """(blocks, 1) as f16, (blocks, 2)."""
    with np.errstate(over="ignore"):
        return d.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _packed(scales: Bytes, codes: Array) -> Bytes:
    """Scales, fifth bits where there are any, nibbles."""
    nibbles = (codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4).astype(np.uint8)
    return np.concatenate([scales, nibbles], axis=1)


def _packed_five(scales: Bytes, codes: Array) -> Bytes:
    fifth = np.packbits((codes >> 4).astype(np.uint8), axis=1, bitorder="little")
    return _packed(np.concatenate([scales, fifth], axis=1), codes)


def _to_q8_0(x: Array, fused: bool) -> Bytes:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    v = x * _over(d)
    whole = np.trunc(v)
    codes = whole + np.where(np.abs(v - whole) >= 0.5, np.sign(v), 0)  # ties away from zero
    return np.concatenate([_half_bytes(d), codes.astype(np.int8).view(np.uint8)], axis=1)


def _to_f16(x: Array, fused: bool) -> Bytes:
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float16).view(np.uint8)


def _to_bf16(x: Array, fused: bool) -> Bytes:
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16).view(np.uint8)


_NARROW: dict[TensorType, Callable[[Array, bool], Bytes]] = {
    TensorType.F32: lambda x, fused: x.view(np.uint8),
    TensorType.F16: _to_f16,
    TensorType.BF16: _to_bf16,
    TensorType.Q4_0: lambda x, fused: _packed(*_signed_codes(x, 8, fused)),
    TensorType.Q4_1: lambda x, fused: _packed(*_ranged_codes(x, 15, fused)),
    TensorType.Q5_0: lambda x, fused: _packed_five(*_signed_codes(x, 16, fused)),
    TensorType.Q5_1: lambda x, fused: _packed_five(*_ranged_codes(x, 31, fused)),
    TensorType.Q8_0: _to_q8_0,
}


def quantize(x: Floats, type: TensorType, *, fused: bool = False) -> Tensor:  # noqa: A002
    """Finite x (rows, columns) as blocks. The K types and IQ4_NL are found by a search: see `ops`.

    Raises:
        KeyError: a type that is found by a search.
    """
    blocks = np.ascontiguousarray(x).reshape(-1, type.block_len)
    return Tensor(type, x.shape, _NARROW[type](blocks, fused).reshape(-1))


# ---- operations ----------------------------------------------------------------------------------


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
    """(n, k): each row of x (n, k) with mean square 1, times weight (k)."""
    wide = x.astype(np.float64)
    square = (wide**2).mean(axis=1, keepdims=True)
    return (wide / np.sqrt(square + eps) * weight).astype(np.float32)


def gated(gate: Floats, up: Floats, activation: str | None = "silu") -> Floats:
    """(n, m): activation(gate) * up, both (n, m)."""
    return (_ACTIVATIONS[activation](gate.astype(np.float64)) * up).astype(np.float32)


def rotate(qkv: Floats, n_heads: int, n_kv_heads: int, batch: Batch, table: Floats) -> Floats:
    """qkv (n, queries | keys | values), queries and keys turned by their positions.

    Numbers j and j + d / 2 of a head are a point in the plane; `table` (n_positions, 2, d / 2) has
    the cosines and the sines of its angles.
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
    bits = _to_bf16(floats, False).view(np.uint16)
    return np.where(np.abs(floats) < 2.0**-126, bits & 0x8000, bits).astype(np.uint16)


def _from_bits(bits: NDArray[np.uint16]) -> Array:
    return _bf16(np.ascontiguousarray(bits).view(np.uint8)).astype(np.float64)


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
