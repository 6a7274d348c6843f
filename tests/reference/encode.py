"""Floats to bytes, in numpy, as ggml's reference does it: (blocks, weights) -> (blocks, bytes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starcoder.core.tensor import Tensor, TensorType

__all__ = ["quantize", "to_bf16"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Array = NDArray[Any]


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


def to_bf16(x: Array, fused: bool) -> Bytes:
    """Bits of x, rounded to nearest, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), bits >> 16 | 0x40, rounded).astype(np.uint16).view(np.uint8)


_NARROW: dict[TensorType, Callable[[Array, bool], Bytes]] = {
    TensorType.F32: lambda x, fused: x.view(np.uint8),
    TensorType.F16: _to_f16,
    TensorType.BF16: to_bf16,
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
