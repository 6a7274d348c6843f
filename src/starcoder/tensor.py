"""Tensor: a named type, a shape and a view of bytes. The TensorType table is ggml's.

A tensor is never computed with here: `quantize.cpp` defines what its bytes mean, `ops` packs and
multiplies it. The bytes mostly are a window into a memory-mapped file.
"""

from __future__ import annotations

import enum
import math
import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import FormatError

__all__ = ["Tensor", "TensorType"]


class TensorType(enum.IntEnum):
    """How weights are stored. The value is ggml's number for the type, in GGUF and legacy files."""

    block_len: int  # weights in a block: the unit of storage
    block_bytes: int  # bytes of a block

    def __new__(cls, ggml_id: int, block_len: int, block_bytes: int) -> TensorType:
        """One row of the table below."""
        row = int.__new__(cls, ggml_id)
        row._value_ = ggml_id
        row.block_len = block_len
        row.block_bytes = block_bytes
        return row

    F32 = 0, 1, 4
    F16 = 1, 1, 2
    Q4_0 = 2, 32, 18
    Q4_1 = 3, 32, 20
    Q5_0 = 6, 32, 22
    Q5_1 = 7, 32, 24
    Q8_0 = 8, 32, 34
    Q2_K = 10, 256, 84
    Q3_K = 11, 256, 110
    Q4_K = 12, 256, 144
    Q5_K = 13, 256, 176
    Q6_K = 14, 256, 210
    IQ4_NL = 20, 32, 18
    BF16 = 30, 1, 2

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this type; its last axis must hold whole blocks.

        Raises:
            ValueError: the last axis is not a multiple of `block_len`.
        """
        if shape[-1] % self.block_len:
            raise ValueError(f"rows of {shape[-1]} weights are no whole blocks of {self.block_len}")
        return math.prod(shape) // self.block_len * self.block_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Weights as stored: `shape` is row-major (rows, columns), `data` the raw bytes.

    Raises:
        FormatError: the number of bytes is not what type and shape ask for.
    """

    type: TensorType
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # (nbytes,), contiguous, mostly read-only

    def __post_init__(self) -> None:
        try:
            expected = self.type.nbytes(self.shape)
        except ValueError as error:
            raise FormatError(
                f"tensor of type {self.type.name}", str(error), "whole blocks"
            ) from None
        if self.data.dtype != np.uint8 or self.data.shape != (expected,):
            found = f"{self.data.dtype} {self.data.shape}"
            raise FormatError(f"tensor of shape {self.shape}", found, f"{expected} bytes")

    @property
    def nbytes(self) -> int:
        """Bytes of storage."""
        return self.data.nbytes

    def array(self) -> NDArray[np.float32]:
        """The weights of an F32 tensor as a float32 array of `shape`, without a copy."""
        if self.type is not TensorType.F32:
            raise FormatError(f"tensor of shape {self.shape}", self.type.name, "F32")
        return self.data.view(np.float32).reshape(self.shape)

    def release(self) -> None:
        """Lets go of the memory of a mapped file's bytes; they are read again if asked for."""
        owner: object = self.data
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if isinstance(owner, memoryview):
            owner = owner.obj
        if not (isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED")):
            return
        start = self.data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages inside the tensor
        length = (start + self.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0:
            owner.madvise(mmap.MADV_DONTNEED, first, length)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        same_kind = self.type is other.type and self.shape == other.shape
        return same_kind and np.array_equal(self.data, other.data)
