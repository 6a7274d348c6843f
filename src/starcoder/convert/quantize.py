"""Quantizing: a checkpoint's tensors in other types, computed while they are written.

A few rows at a time are read, made float32, encoded and handed on, so a model of any size takes
some MB of memory. The kernels use all threads; the file writer has its own. The same input gives
the same bytes whatever the number of threads. Which tensor gets which type is for `type_plan`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starcoder.convert.finite import check_rows
from starcoder.convert.type_plan import Choice, plan
from starcoder.core import machine, ops
from starcoder.core.tensor import Tensor, TensorType, Weights
from starcoder.errors import FormatError
from starcoder.model.checkpoint import Checkpoint

__all__ = [
    "Choice",
    "Copied",
    "Quantized",
    "check_finite",
    "plan",
    "quantize",
    "use_threads",
]

_PIECE_WEIGHTS = 1 << 20  # encoded at once
_F16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Copied:
    """A tensor as it is, looked at while it is copied."""

    source: Tensor
    where: str  # file and tensor, for messages

    @property
    def type(self) -> TensorType:
        """That of the source."""
        return self.source.type

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the source."""
        return self.source.shape

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """All bytes in order, some rows at a time.

        Raises:
            FormatError: a weight that is not finite, or a file that changed meanwhile.
        """
        for rows in _checked_rows(self.source, self.where):
            yield rows.data.copy()


@dataclass(frozen=True, slots=True)
class Quantized:
    """A tensor in another type; its bytes are computed when they are read."""

    source: Tensor
    type: TensorType
    where: str  # file and tensor, for messages
    fused: bool = False  # rounded as ggml's program rounds legacy files: see `ops.quantize`

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the source: (rows, columns)."""
        return self.source.shape

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """All bytes in order, some rows at a time.

        Raises:
            FormatError: a weight that is not finite, or a file that changed meanwhile.
        """
        for rows in _checked_rows(self.source, self.where):
            encoded = ops.requantize(rows, self.type, fused=self.fused)
            if _may_overflow(rows) and ops.first_non_finite(encoded) is not None:
                raise FormatError(self.where, "a weight too large", f"what {self.type.name} holds")
            yield encoded.data


def quantize(
    checkpoint: Checkpoint, types: Mapping[str, TensorType], *, legacy: bool = False
) -> dict[str, Weights]:
    """The checkpoint's tensors in these types, to be written; what has its type is copied.

    Every weight is looked at on its way: one that is not finite ends the writing.

    With `legacy` the bytes are those that ggml's own program writes in its `.bin` files; without,
    llama.cpp's in GGUF files. They differ in about one code in a million.
    """
    weights: dict[str, Weights] = {}
    for name, tensor in checkpoint.tensors.items():
        kind = types[name]
        where = f"{checkpoint.source}: tensor {name}"
        weights[name] = (
            Copied(tensor, where)
            if kind is tensor.type
            else Quantized(tensor, kind, where, fused=legacy)
        )
    return weights


def use_threads(n: int | None) -> None:
    """How many threads encode weights, if so many can run here; None: see `machine`."""
    ops.set_n_threads(machine.threads(n).n)


def check_finite(checkpoint: Checkpoint) -> Iterator[int]:
    """Reads every weight; yields bytes read, piece by piece.

    Raises:
        FormatError: a weight that is not finite; the message has its place. Or a file that changed.
    """
    for name, tensor in checkpoint.tensors.items():
        for rows in _checked_rows(tensor, f"{checkpoint.source}: tensor {name}"):
            yield rows.nbytes


def _checked_rows(tensor: Tensor, where: str) -> Iterator[Tensor]:
    """All rows in order, a few at a time, whose weights are finite.

    Their memory is let go when the next are asked for.

    Raises:
        FormatError: a weight that is not finite, or a file that changed meanwhile.
    """
    for first, rows in _row_pieces(_as_rows(tensor)):
        check_rows(rows, first, where)
        yield rows
        rows.release()
    tensor.finish()


def _as_rows(tensor: Tensor) -> Tensor:
    """The tensor as (rows, columns): a vector is one row."""
    if len(tensor.shape) == 2:
        return tensor
    n_rows = math.prod(tensor.shape[:-1])
    return Tensor(tensor.type, (n_rows, tensor.shape[-1]), tensor.data)


def _row_pieces(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of the first row, and some rows; the system already reads the next ones."""
    n_rows, n_cols = tensor.shape
    step = max(1, _PIECE_WEIGHTS // n_cols)
    for first in range(0, n_rows, step):
        if first + step < n_rows:
            tensor.rows(first + step, first + 2 * step).prefetch()
        yield first, tensor.rows(first, first + step)


def _may_overflow(rows: Tensor) -> bool:
    """Whether a scale, or a weight, may be beyond f16; a look at the encoded bytes costs more."""
    if rows.type is TensorType.F16:
        return False
    if rows.type is not TensorType.F32:
        return True
    x = rows.data.view(np.float32)
    return bool(max(x.max(), -x.min()) > _F16_MAX)
