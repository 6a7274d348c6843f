"""`pytorch_model.bin`: a table of tensors as `torch.save` writes it. Reading only, without torch.

A ZIP file, nothing in it compressed:

    x/data.pkl            a pickle of the table: name -> storage, offset, shape, strides
    x/data/0  x/data/1    the numbers of each storage
    x/byteorder           "little"

The names that the pickle may use are the table below. Every size is compared with the entry that
holds the numbers, and tensors stay in the mapped file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from starcoder.formats.hf.pickle import MAX_PICKLE, UNSAFE, Machine, Name
from starcoder.formats.hf.safetensors import Stored
from starcoder.formats.hf.zip import MAGIC, Entry, read_directory
from starcoder.formats.io.mapped import Cursor, map_file
from starcoder.formats.io.reject import DAMAGED, reject

__all__ = ["MAGIC", "read_torch"]

_MAX_DIMS = 8
_WRAPS = ("model", "state_dict", "model_state_dict", "module")  # keys of a table in a table
_OLD = "load it with torch 1.6 or newer and save the model as safetensors"

_NUMBERS = {  # types of storage; the last three are of masks that old versions saved
    b"torch FloatStorage": Name("F32", size=4),
    b"torch HalfStorage": Name("F16", size=2),
    b"torch BFloat16Storage": Name("BF16", size=2),
    b"torch BoolStorage": Name("BOOL", size=1),
    b"torch ByteStorage": Name("U8", size=1),
    b"torch LongStorage": Name("I64", size=8),
}


class _Storage(NamedTuple):
    """A run of numbers in the file."""

    numbers: Name
    entry: Entry


class _Tensor(NamedTuple):
    """A tensor; a class of its own, so that nothing else in a pickle can pass for one."""

    stored: Stored


def read_torch(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name.

    Raises:
        FormatError: anything but a table of whole, plain tensors.
    """
    cursor = Cursor(str(path), map_file(path))
    if cursor.data[: len(MAGIC)] != MAGIC:
        reject(path, "", "a PyTorch file from before 1.6, or no PyTorch file", "a ZIP file", _OLD)
    entries = read_directory(cursor)
    root = next((name.removesuffix("data.pkl") for name in entries if _is_pickle(name)), "")
    files = {name.removeprefix(root): entry for name, entry in entries.items()}
    if len(files) != len(entries) or "data.pkl" not in files:
        reject(path, "", "a ZIP file of something else", "x/data.pkl, as torch.save writes it")
    _check_order(cursor, files)
    return _Torch(cursor, files).read()


def _is_pickle(name: str) -> bool:
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _check_order(cursor: Cursor, files: dict[str, Entry]) -> None:
    order = files.get("byteorder")
    if order is not None and cursor.data[order.start : order.end][:9] != b"little":
        cursor.fail("byteorder", "another byte order", "little", "save it on a common machine")


def _unwrap(value: Any) -> Any:
    """The table of tensors that stands in a table, beside plain values alone, as some save it."""
    inner = [v for k, v in value.items() if k in _WRAPS] if type(value) is dict else []
    if len(inner) == 1 and type(inner[0]) is dict:
        others = [type(v) for v in value.values() if v is not inner[0]]
        if all(kind in (int, str, bool, type(None)) for kind in others):
            return inner[0]
    return value


class _Torch:
    """One file: what its pickle's names and persistent ids stand for."""

    def __init__(self, cursor: Cursor, files: dict[str, Entry]) -> None:
        self.cursor, self.files = cursor, files

    def read(self) -> dict[str, Stored]:
        start, end = self.files["data.pkl"]
        if end - start > MAX_PICKLE:
            self.fail(f"{end - start} bytes", f"at most {MAX_PICKLE}")
        names = _NUMBERS | {
            b"collections OrderedDict": Name("table", self.table),
            b"torch._utils _rebuild_tensor_v2": Name("tensor", self.tensor),
            b"torch._utils _rebuild_parameter": Name("parameter", self.parameter),
        }
        machine = Machine(self.cursor.data[start:end], names, self.storage, self.fail)
        table = _unwrap(machine.run())
        if type(table) is not dict:
            self.fail(f"a {type(table).__name__}", "a table of tensors", UNSAFE)
        for name, value in table.items():
            if type(value) is not _Tensor:
                self.fail(f"a {type(value).__name__} as {name[:80]!r}", "tensors only", UNSAFE)
        return {name: tensor.stored for name, tensor in table.items()}

    def fail(self, found: str, expected: str, advice: str = "") -> NoReturn:
        self.cursor.fail("data.pkl", found[:200], expected, advice)

    def table(self, arguments: tuple[Any, ...]) -> dict[str, Any]:
        if arguments:
            self.fail("a table made of arguments", "an empty one")
        return {}

    def parameter(self, arguments: tuple[Any, ...]) -> _Tensor:
        match arguments:
            case (_Tensor() as tensor, bool(), _):
                pass
            case _:
                self.fail("a parameter of something else", "a parameter of a tensor")
        return tensor

    def storage(self, arguments: tuple[Any, ...]) -> _Storage:
        match arguments:
            case ("storage", Name(make=None) as numbers, str(key), str(), int(count)):
                pass
            case _:
                self.fail("a storage of another kind", "type, key, place and number of elements")
        entry = self.files.get(f"data/{key}")
        if entry is None:
            self.fail(f"the storage {key[:80]!r}", "an entry of the file", DAMAGED)
        expected = entry.end - entry.start
        if count * numbers.size != expected:
            found = f"{count} elements of {numbers.kind} in storage {key[:80]!r}"
            self.fail(found, f"{expected} bytes, as its entry has", DAMAGED)
        return _Storage(numbers, entry)

    def tensor(self, arguments: tuple[Any, ...]) -> _Tensor:
        match arguments:
            case (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), *rest):
                pass
            case _:
                self.fail("a tensor of other parts", "storage, offset, shape and strides")
        if len(rest) > 2 or len(shape) > _MAX_DIMS or len(strides) != len(shape):
            self.fail(f"a tensor of {len(shape)} dimensions", f"at most {_MAX_DIMS}, with strides")
        if not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
            self.fail("a size that is none", "whole numbers of at most 62 bits", DAMAGED)
        self.check_strides(shape, strides)
        start = storage.entry.start + offset * storage.numbers.size
        n_bytes = math.prod(shape) * storage.numbers.size
        if start + n_bytes > storage.entry.end:
            found = f"shape {shape} from element {offset} on"
            self.fail(found, f"at most {storage.entry.end - storage.entry.start} bytes", DAMAGED)
        self.cursor.pos = start
        return _Tensor(Stored(storage.numbers.kind, shape, self.cursor.view(n_bytes, "data")))

    def check_strides(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        """Rows must follow each other: a transposed or repeated tensor is refused."""
        step = 1
        for length, stride in zip(reversed(shape), reversed(strides), strict=True):
            if length > 1 and stride != step:
                advice = "call contiguous() on it and save it again"
                self.fail(f"strides {strides} of shape {shape}", "rows in order", advice)
            step *= max(length, 1)
