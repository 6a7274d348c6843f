"""What the readers share about bytes: mapped files, a cursor, strict JSON, vectors as F32.

Numbers from a file are compared with the bytes that are left before anything is made of them, so
no size that a file claims is ever allocated.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from starcoder import machine, ops
from starcoder.errors import FormatError, MemoryLimitError, printable
from starcoder.mapped_file import MappedFile
from starcoder.tensor import Tensor, TensorType

__all__ = [
    "DAMAGED",
    "Cursor",
    "load_json",
    "map_file",
    "read_json",
    "read_json_text",
    "reject",
    "settle",
    "shown",
]

DAMAGED = "the file is truncated or damaged; copy or convert it again"
_MEND = "mend it there, or copy the file again"


def shown(text: str, limit: int = 160) -> str:
    """Text from a file as it may be shown: no control characters, at most `limit` long."""
    return printable(text[:limit])


def reject(path: Path, what: str, found: str, expected: str, advice: str = "") -> NoReturn:
    """End reading with an error that names the file, and `what` in it if not empty."""
    where = f"{path}: {shown(what)}" if what else str(path)
    raise FormatError(where, shown(found), expected, advice)


def map_file(path: Path) -> MappedFile:
    """The file as read-only memory, which lives as long as a view of it.

    Raises:
        FormatError: no such file, no permission, an empty file, a device or a pipe.
        MemoryLimitError: the address space has no room for it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError(str(path), "no regular file", "a model file or directory")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FormatError(str(path), "an empty file", "a model", DAMAGED)
            return MappedFile(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        advice = "check the path and its permissions"
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            advice = "allow more with ulimit -n, or join the parts of the model into one file"
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryLimitError(str(path), reason.lower(), "room to map it", "") from None
        raise FormatError(str(path), reason.lower(), "a model file", advice) from None


@dataclass(slots=True)
class Cursor:
    """A place in a mapped file. It moves forward only, and never past the end.

    Every method raises FormatError where the file holds less than is asked for.
    """

    name: str  # of the file, for messages
    data: MappedFile
    pos: int = 0

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return len(self.data) - self.pos

    def fail(self, what: str, found: str, expected: str, advice: str = "") -> NoReturn:
        """End reading with an error that names the file."""
        reject(Path(self.name), what, found, expected, advice)

    def skip(self, n: int, what: str) -> int:
        """Step over `n` bytes; returns where they start."""
        start = self.pos
        if n > self.left:
            self.fail(what, f"only {self.left} bytes left in the file", f"{n} bytes", DAMAGED)
        self.pos = start + n
        return start

    def unpack(self, fields: struct.Struct, what: str) -> tuple[Any, ...]:
        """Numbers as `fields` describes them."""
        return fields.unpack_from(self.data, self.skip(fields.size, what))

    def take(self, n: int, limit: int, what: str) -> bytes:
        """A copy of `n` bytes, of which there may be `limit` at most."""
        if n > limit:
            self.fail(what, f"a length of {n} bytes", f"at most {limit}", DAMAGED)
        start = self.skip(n, what)
        return self.data[start : start + n]

    def text(self, n: int, limit: int, what: str, errors: str = "strict") -> str:
        """`n` bytes of UTF-8 as text; `errors` as in `bytes.decode`."""
        raw = self.take(n, limit, what)
        try:
            return raw.decode(errors=errors)
        except UnicodeDecodeError:
            self.fail(what, f"the bytes {raw[:16]!r}", "UTF-8 text", DAMAGED)

    def view(self, n: int, what: str) -> NDArray[np.uint8]:
        """`n` bytes of the mapping itself, not a copy."""
        start = self.skip(n, what)
        return np.frombuffer(self.data, np.uint8, n, start)


# ------------------------------------------------------------------------------------------------


def load_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        FormatError: a file that is missing or longer, or holds something else.
    """
    data = map_file(path)
    if len(data) > limit:
        reject(path, "", f"{len(data)} bytes", f"at most {limit}")
    return read_json_text(data[:], path)


def read_json_text(raw: bytes, path: Path) -> dict[str, Any]:
    """The JSON object of a file that people edit: some editors put a byte order mark first.

    Raises:
        FormatError: the bytes are no such object.
    """
    return read_json(raw.removeprefix(codecs.BOM_UTF8), str(path), _MEND)


def read_json(raw: bytes, where: str, advice: str = DAMAGED) -> dict[str, Any]:
    """A JSON object. Keys that come twice, NaN and anything that is not UTF-8 are refused.

    Args:
        raw: the bytes.
        where: what holds them, for messages.
        advice: what to do with text that is wrong, but neither cut off nor other bytes.

    Raises:
        FormatError: the bytes are no such object.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = str(error).splitlines()[0][:120]
        advice = DAMAGED if _is_cut_or_binary(error) else advice
        raise FormatError(where, f"no valid JSON ({reason})", "a JSON object", advice) from None
    if not isinstance(value, dict):
        raise FormatError(where, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def _is_cut_or_binary(error: Exception) -> bool:
    """Whether text ends too early, or is none."""
    if isinstance(error, json.JSONDecodeError):
        unclosed = error.msg.startswith("Unterminated")
        return unclosed or error.pos >= len(error.doc.rstrip())
    return isinstance(error, UnicodeDecodeError)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key that comes twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


# ------------------------------------------------------------------------------------------------


def settle(
    tensors: dict[str, Tensor], where: str, *, keeps_positions: bool = False
) -> dict[str, Tensor]:
    """The tensors as models want them, from whichever format.

    Vectors and position embeddings become F32, whatever their type, since they are added to
    activations as they are; with `keeps_positions`, position embeddings in F16 or BF16 stay so, to
    be written as they were. They are copies, so that nothing of the file is needed once the
    matrices are packed; only matrices keep the file's type and place. An output matrix that is a
    copy of the embedding goes: one matrix serves for both.

    Raises:
        MemoryLimitError: the copies need more memory than there is.
    """
    output = tensors.get("output.weight")
    if output is not None and output == tensors.get("token_embd.weight"):
        tensors = {name: t for name, t in tensors.items() if t is not output}
    vectors = {n: t for n, t in tensors.items() if len(t.shape) == 1 or n == "position_embd.weight"}
    _check_room(sum(4 * math.prod(t.shape) for t in vectors.values()), where)
    kept = (TensorType.F16, TensorType.BF16) if keeps_positions else ()
    return tensors | {
        n: _copy(t) if len(t.shape) == 2 and t.type in kept else _as_f32(t)
        for n, t in vectors.items()
    }


def _check_room(nbytes: int, where: str) -> None:
    """A hollow file may claim any size, so what is copied is compared with the memory there is."""
    room = machine.memory_room()
    if room is not None and nbytes > room.nbytes:
        found = f"norms, biases and position embeddings of {nbytes:,} bytes"
        expected = f"at most {room.nbytes:,}, the {room.limit}"
        raise MemoryLimitError(where, found, expected, "use a machine with more memory")


def _copy(tensor: Tensor) -> Tensor:
    data = tensor.data.copy()
    tensor.release()
    data.flags.writeable = False
    return Tensor(tensor.type, tensor.shape, data)


def _as_f32(tensor: Tensor) -> Tensor:
    if tensor.type is TensorType.F32:
        return _copy(tensor)
    n_rows = math.prod(tensor.shape[:-1])
    rows = Tensor(tensor.type, (n_rows, tensor.shape[-1]), tensor.data)
    data = ops.dequantize(rows).view(np.uint8).reshape(-1)
    tensor.release()
    data.flags.writeable = False
    return Tensor(TensorType.F32, tensor.shape, data)
