"""safetensors files: named arrays in one file, with a JSON header. Reading only.

    u64 n  n bytes of JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}}  data

What the names mean is for `hf.names` to know.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starcoder.formats.io.json import read_json
from starcoder.formats.io.mapped import Cursor, map_file
from starcoder.formats.io.reject import DAMAGED, reject

__all__ = ["Stored", "read_safetensors"]

_U64 = struct.Struct("<Q")
_MAX_HEADER = 1 << 20  # StarCoder's has 60 kB; its values take up to 20 times more in memory
_MAX_DIMS = 8
# fmt: off
_SIZES = {  # bytes of an element
    "BOOL": 1, "U8": 1, "I8": 1,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F32": 4, "I32": 4, "U32": 4,
    "F64": 8, "I64": 8, "U64": 8,
}
# fmt: on


class Stored(NamedTuple):
    """A tensor as it lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]


class _Entry(NamedTuple):
    """One tensor of a safetensors header, checked."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of one file. They must follow each other without gaps, to the file's end."""
    cursor = Cursor(str(path), map_file(path))
    (length,) = cursor.unpack(_U64, "header")
    header = read_json(cursor.take(length, _MAX_HEADER, "header"), f"{path}: header")
    header.pop("__metadata__", None)
    entries = [_entry(path, name, value) for name, value in header.items()]
    tensors: dict[str, Stored] = {}
    place = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != place:
            reject(path, f"tensor {entry.name}", f"offset {entry.begin}", str(place), DAMAGED)
        data = cursor.view(entry.end - entry.begin, f"tensor {entry.name}")
        tensors[entry.name] = Stored(entry.dtype, entry.shape, data)
        place = entry.end
    if cursor.left:
        reject(path, "data", f"{cursor.left} bytes after the last tensor", "none", DAMAGED)
    return tensors


def _entry(path: Path, name: str, value: Any) -> _Entry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            reject(
                path, f"tensor {name}", str(value)[:80], "dtype, shape and data_offsets", DAMAGED
            )
    numbers = (begin, end, *shape)
    if len(shape) > _MAX_DIMS or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        reject(path, f"tensor {name}", str(value)[:80], "whole numbers of at most 63 bits", DAMAGED)
    if dtype not in _SIZES:
        reject(path, f"tensor {name}", f"type {dtype[:80]!r}", " ".join(_SIZES))
    expected = math.prod(shape) * _SIZES[dtype]
    if end - begin != expected:
        wanted = f"{expected} for {dtype} {shape}"[:80]
        reject(path, f"tensor {name}", f"{end - begin} bytes", wanted, DAMAGED)
    return _Entry(name, dtype, tuple(shape), begin, end)
