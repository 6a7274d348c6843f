"""Tensor: a named type, a shape and a view of bytes. The TensorType table is ggml's.

A tensor is never computed with here: `csrc/types/decode.cpp` defines what its bytes mean, `ops`
packs and multiplies it. The bytes mostly are a window into a memory-mapped file.
"""

from __future__ import annotations

import enum
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starcoder.core.mapped_file import MappedFile
from starcoder.errors import FormatError

__all__ = ["JoinedTensor", "Tensor", "TensorType", "Weights"]

_PIECE_BYTES = 4 << 20  # of a tensor that is copied: small beside memory, large beside a call


class TensorType(enum.IntEnum):
    """How weights are stored. The value is ggml's number for the type, in GGUF and legacy files."""

    block_len: int  # weights in a block: the unit of storage
    block_bytes: int  # bytes of a block
    gguf_file: int  # llama.cpp's number for a GGUF file that mostly has this type
    ggml_file: int | None  # ggml's for a .bin file with this type; None: it came after the format

    def __new__(
        cls, ggml_id: int, block_len: int, block_bytes: int, gguf_file: int, ggml_file: int | None
    ) -> TensorType:
        """One row of the table below."""
        row = int.__new__(cls, ggml_id)
        row._value_ = ggml_id
        row.block_len, row.block_bytes = block_len, block_bytes
        row.gguf_file, row.ggml_file = gguf_file, ggml_file
        return row

    # fmt: off
    F32 =    0,   1,   4,  0,    0
    F16 =    1,   1,   2,  1,    1
    Q4_0 =   2,  32,  18,  2,    2
    Q4_1 =   3,  32,  20,  3,    3
    Q5_0 =   6,  32,  22,  8,    8
    Q5_1 =   7,  32,  24,  9,    9
    Q8_0 =   8,  32,  34,  7,    7
    Q2_K =  10, 256,  84, 10,   10
    Q3_K =  11, 256, 110, 12,   11
    Q4_K =  12, 256, 144, 15,   12
    Q5_K =  13, 256, 176, 17,   13
    Q6_K =  14, 256, 210, 18,   14
    IQ4_NL = 20, 32,  18, 25, None
    BF16 =  30,   1,   2, 32, None
    # fmt: on

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

    def rows(self, first: int, last: int) -> Tensor:
        """The rows from `first` up to `last`, not included, over the same bytes."""
        row_bytes = self.nbytes // self.shape[0]
        data = self.data[first * row_bytes : last * row_bytes]
        return Tensor(self.type, (len(data) // row_bytes, *self.shape[1:]), data)

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """All bytes in order, as copies of a few MB; what was copied leaves memory again.

        Raises:
            FormatError: the file changed meanwhile; said after the last piece.
        """
        for start in range(0, self.nbytes, _PIECE_BYTES):
            piece = self.data[start : start + _PIECE_BYTES]
            yield piece.copy()
            _advise(piece, "MADV_DONTNEED")
        self.finish()

    def prefetch(self) -> None:
        """Asks for a mapped file's bytes to be read from disk while other work goes on."""
        _advise(self.data, "MADV_WILLNEED")

    def finish(self) -> None:
        """Lets go of the memory, after all bytes were read.

        Raises:
            FormatError: the file changed since it was opened.
        """
        self.release()
        for file in self.files():
            file.check()

    def release(self) -> None:
        """Lets go of the memory of a mapped file's bytes; they are read again if asked for."""
        _advise(self.data, "MADV_DONTNEED")

    def files(self) -> Iterator[MappedFile]:
        """The files that the bytes lie in: one, or none."""
        file = _file(self.data)
        if file is not None:
            yield file

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        if self.type is not other.type or self.shape != other.shape:
            return False
        if isinstance(self, JoinedTensor) or isinstance(other, JoinedTensor):
            return np.array_equal(self.data, other.data)
        pairs = zip(self.pieces(), other.pieces(), strict=True)  # of 4 MB, whatever the size
        return all(np.array_equal(left, right) for left, right in pairs)


class JoinedTensor(Tensor):
    """Rows that lie in several places of a file, one place after the other.

    `data` is a fresh copy at each use; `rows` and `pieces` copy no more than they give.
    """

    __slots__ = ("_parts",)
    _parts: tuple[Tensor, ...]

    def __init__(self, *parts: Tensor) -> None:
        shape = sum(part.shape[0] for part in parts), *parts[0].shape[1:]
        object.__setattr__(self, "type", parts[0].type)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "_parts", parts)

    @property
    def data(self) -> NDArray[np.uint8]:  # noqa: D102
        return np.concatenate([part.data for part in self._parts])

    @property
    def nbytes(self) -> int:  # noqa: D102
        return self.type.nbytes(self.shape)

    def rows(self, first: int, last: int) -> Tensor:  # noqa: D102
        found, start = [], 0
        for part in self._parts:
            inside = max(first - start, 0), min(last - start, part.shape[0])
            if inside[0] < inside[1]:
                found.append(part.rows(*inside))
            start += part.shape[0]
        return found[0] if len(found) == 1 else JoinedTensor(*found)

    def pieces(self) -> Iterator[NDArray[np.uint8]]:  # noqa: D102
        for part in self._parts:
            yield from part.pieces()

    def files(self) -> Iterator[MappedFile]:  # noqa: D102
        for part in self._parts:
            yield from part.files()

    def prefetch(self) -> None:  # noqa: D102
        for part in self._parts:
            part.prefetch()

    def release(self) -> None:  # noqa: D102
        for part in self._parts:
            part.release()


class Weights(Protocol):
    """What can be written as a tensor: a `Tensor`, or one that is computed piece by piece."""

    @property
    def type(self) -> TensorType:
        """How the bytes are to be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Row-major."""

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """All bytes in order. Whoever gets a piece may keep it."""


def _advise(data: NDArray[np.uint8], advice: str) -> None:
    """Tells the system what to do with the whole pages of a file's mapping inside `data`."""
    file = _file(data)
    if file is None or not hasattr(mmap, advice):
        return
    start = data.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        file.madvise(getattr(mmap, advice), first, length)


def _file(data: NDArray[np.uint8]) -> MappedFile | None:
    """The file that these bytes lie in, if they do."""
    owner: object = data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, MappedFile) else None
