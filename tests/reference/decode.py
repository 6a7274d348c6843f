"""What the bytes of each type mean, in numpy: slow, and written without a look at the core's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starcoder.core.tensor import Tensor, TensorType

__all__ = ["CODEBOOK", "dequantize", "from_bf16", "packed"]

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Array = NDArray[Any]

CODEBOOK = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)

# What the bytes of each type mean: (blocks, bytes) -> (blocks, weights).


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


def from_bf16(b: Bytes) -> Array:
    """The floats that bits stand for."""
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
    TensorType.BF16: from_bf16,
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
