"""The core's Python face: weights packed and converted, and the graph that runs a model.

A model records its operations in a `Graph` once, and every batch runs through it in a single call.
What they compute, and how it is rounded, is said in `csrc/kernels.h`; tests call the operations one
by one, and hold them against slow twins of the same names in `tests/reference`.
"""

from __future__ import annotations

import functools
import math
import os

import numpy as np
from numpy.typing import NDArray

from starcoder import _core
from starcoder._core import Graph, Matrix
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import InputError, MemoryLimitError

__all__ = [
    "ACTIVATIONS",
    "Graph",
    "Matrix",
    "available_isas",
    "close",
    "collapse_pages",
    "dequantize",
    "first_non_finite",
    "isa",
    "n_threads",
    "pack",
    "packed_bytes",
    "quantize",
    "requantize",
    "set_n_threads",
    "use_isa",
]

Floats = NDArray[np.float32]

ACTIVATIONS = {None: 0, "gelu_tanh": 1, "gelu_erf": 2, "silu": 3}


def pack(tensor: Tensor) -> Matrix:
    """The weights (m, k) of a tensor, repacked for `linear` and `embed`.

    The pages of a mapped file are let go, so that weights do not stand in memory twice.

    Raises:
        MemoryLimitError: no memory for them.
    """
    _choose_isa()
    n_rows, n_cols = tensor.shape
    try:
        packed = Matrix(int(tensor.type), tensor.data, n_rows, n_cols)
    except MemoryError:
        found = f"not enough memory for {tensor.nbytes:,} bytes"
        advice = "use a smaller model or a smaller type"
        raise MemoryLimitError("weights", found, "", advice) from None
    tensor.release()
    return packed


def packed_bytes(type: TensorType, shape: tuple[int, ...]) -> int:  # noqa: A002
    """Bytes that `pack` takes for weights (m, k) of a type: its rows and columns are filled up.

    Raises:
        ValueError: rows are no whole blocks.
    """
    return _core.packed_bytes(int(type), *shape)


def collapse_pages(seconds: float = math.inf) -> bool:
    """Makes huge pages of the small ones that weights began with; whether some are still small.

    Happens by itself when models have run for a while: `csrc/sys/arena.h` says why weights wait.
    """
    return _core.collapse_pages(seconds)


def dequantize(tensor: Tensor) -> Floats:
    """The floats (rows, columns) that a tensor's blocks stand for, exactly."""
    _choose_isa()
    out = np.empty(tensor.shape, np.float32)
    _core.dequantize(int(tensor.type), tensor.data, out)
    return out


def quantize(x: Floats, type: TensorType, *, fused: bool = False) -> Tensor:  # noqa: A002
    """x (rows, columns) as blocks of a type, whose `block_len` divides the columns.

    Q4_0 to Q8_0 are the bytes of ggml's reference; the K types and IQ4_NL have the scales and codes
    of least squared error that a search finds. A weight that is not finite makes its block NaN.

    ggml's bytes depend on its compiler: llama.cpp's GGUF files have products rounded before they
    are added to, legacy files by ggml's own program have not. That is `fused`; it moves about one
    code in a million.

    Raises:
        ValueError: rows are no whole blocks.
    """
    _choose_isa()
    out = np.empty(type.nbytes(x.shape), np.uint8)
    _core.quantize(int(type), x, fused, out)
    return Tensor(type, x.shape, out)


def requantize(
    tensor: Tensor,
    type: TensorType,  # noqa: A002
    out: NDArray[np.uint8] | None = None,
    *,
    fused: bool = False,
) -> Tensor:
    """The weights (rows, columns) of a tensor as another type: `dequantize`, then `quantize`.

    The floats in between never reach memory. With `out` (nbytes), the blocks are written there.

    Raises:
        ValueError: rows are no whole blocks, or `out` is of another size.
    """
    _choose_isa()
    n_rows, n_cols = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    out = np.empty(type.nbytes(tensor.shape), np.uint8) if out is None else out
    _core.requantize(int(tensor.type), tensor.data, n_rows, n_cols, int(type), fused, out)
    return Tensor(type, tensor.shape, out)


def first_non_finite(x: Floats | Tensor) -> int | None:
    """The place, in row-major order, of the first weight that is NaN or infinite, if one is."""
    _choose_isa()
    if isinstance(x, Tensor):
        at = _core.first_non_finite(int(x.type), x.data)
    else:
        at = _core.first_non_finite(int(TensorType.F32), x.reshape(-1).view(np.uint8))
    return None if at < 0 else at


# ---- the machine ---------------------------------------------------------------------------------


def n_threads() -> int:
    """Threads that every operation shares."""
    return _core.n_threads()


def set_n_threads(n: int) -> int:
    """Sets the number of threads of every later operation, and starts them.

    Results do not depend on it. Returns how many there are, the caller among them: fewer than `n`
    where the system starts no more.
    """
    _choose_isa()
    _core.set_n_threads(n)
    return _core.start_threads()


def close() -> None:
    """At the end of the process: ends the calls of other threads, which never return from them.

    The calling thread may go on.
    """
    _core.close()


def isa() -> str:
    """The instruction set in use: "avx512", "avxvnni", "avx2", "neon" or "scalar"."""
    _choose_isa()
    return _core.isa()


def available_isas() -> list[str]:
    """The instruction sets of this machine, best first."""
    return _core.available_isas()


def use_isa(name: str) -> None:
    """Changes the instruction set of every later operation. Results do not depend on it.

    Not while another thread computes: what one call has rounded in one way another would take in
    another.

    Raises:
        InputError: this machine has no such instruction set.
    """
    _choose_isa()
    _use_isa("instruction set", name)


@functools.cache
def _choose_isa() -> None:
    """Before the first operation: the instruction set that STARCODER_ISA names, if it is set."""
    name = os.environ.get("STARCODER_ISA")
    if name:
        _use_isa("STARCODER_ISA", name)


def _use_isa(where: str, name: str) -> None:
    if not _core.use_isa(name):
        raise InputError(where, repr(name), " or ".join(available_isas()))
