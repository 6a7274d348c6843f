"""A tape: calls of the core with their answers, in a file that another machine can replay.

    python -m tests.helpers.tape TAPE   with the core of this Python
    replay TAPE                         without Python: replay.cpp

Both print the instruction set and the number of calls, and fail if an answer has other bits. What a
file is made of, in numbers of eight bytes (texts and contents are filled up to eight):

    call    = name, label, number of arguments, arguments, result
    text    = number of bytes, bytes
    array   = dtype, number of axes, shape, number of bytes, bytes
    value   = one of the KINDS, then: nothing; a number; the number of an object, in the order in
              which objects were made; an array that is read (ARRAY) or must come out (ANSWER); or
              (STATE) its number and an array that calls go on filling, zeros at first, without
              bytes where nobody compares it.
"""

from __future__ import annotations

import enum
import functools
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from starcoder import _core
from starcoder.core import ops
from tests.helpers import operations

KINDS = enum.IntEnum("KINDS", "NONE INT BOOL FLOAT OBJECT ARRAY ANSWER STATE", start=0)
DTYPES = [np.uint8, np.int32, np.float32, np.uint16]

# Which arguments a call goes on filling, and whether its last one must come out.
STATES = {"testing.store_kv": (5, 6), "testing.attention": (5, 6), "Graph.run": (6, 7)}
ANSWERS = {
    *("testing.linear", "testing.embed", "testing.layer_norm", "testing.rms_norm"),
    *("testing.gated", "testing.rotate", "testing.attention", "Graph.run"),
    *("dequantize", "quantize", "requantize"),
}
OTHERS = {
    *("Matrix", "Graph", "Memory", "Memory.read", "testing.store_kv", "first_non_finite", "peak"),
    *("Graph.embed", "Graph.layer_norm", "Graph.rms_norm", "Graph.rotate", "Graph.linear"),
    *("Graph.gated", "Graph.concat", "Graph.attention", "Graph.select"),
}


class Tape:
    """Stands in for the core: passes calls on, and writes down them and their answers."""

    def __init__(self) -> None:
        self.label = ""  # of the calls that follow
        self.names: set[str] = set()  # of all calls
        self._pieces: list[bytes] = []
        self._objects: list[object] = []
        self._states: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        if name == "testing":
            return Submodule(self, name)
        if name in ANSWERS | OTHERS:
            return functools.partial(self._call, name)
        return getattr(_core, name)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever uses `ops` or `operations` is written down."""
        names = {"_core": self, "Matrix": self.Matrix, "Graph": self.Graph}
        with mock.patch.multiple(ops, **names), mock.patch.object(operations, "_core", self):
            yield

    def save(self, path: Path) -> None:
        path.write_bytes(b"".join(self._pieces))

    def _call(self, name: str, *args: Any) -> Any:
        plain: list[Any] = [arg.of if isinstance(arg, Methods) else arg for arg in args]
        result = function(name)(*plain)
        self.names.add(name)
        self._text(name)
        self._text(self.label)
        self._numbers(len(args))
        for i, arg in enumerate(plain):
            if i in STATES.get(name, ()):
                self._state(arg, is_compared=name == "testing.store_kv")
            elif isinstance(arg, np.ndarray):
                is_answer = name in ANSWERS and i == len(args) - 1
                self._numbers(KINDS.ANSWER if is_answer else KINDS.ARRAY)
                self._array(arg)
            else:
                self._plain(arg)
        if name in ("Matrix", "Graph", "Memory"):
            self._objects.append(result)
        self._plain(told(result))
        return Methods(self, name, result) if name in ("Graph", "Memory") else result

    def _plain(self, value: Any) -> None:
        if value is None:
            self._numbers(KINDS.NONE)
        elif isinstance(value, float):
            self._pieces.append(struct.pack("<qd", KINDS.FLOAT, value))
        elif isinstance(value, int):
            kind = KINDS.BOOL if isinstance(value, bool) else KINDS.INT
            self._numbers(kind, value)
        else:
            at = next(i for i, known in enumerate(self._objects) if known is value)
            self._numbers(KINDS.OBJECT, at)

    def _state(self, array: np.ndarray, *, is_compared: bool) -> None:
        where = array.ctypes.data
        known = [state.ctypes.data for state in self._states]
        if where not in known:
            self._states.append(array)  # kept, so that nothing else gets its place in memory
            known.append(where)
        self._numbers(KINDS.STATE, known.index(where))
        self._array(array, has_bytes=is_compared)

    def _array(self, array: np.ndarray, *, has_bytes: bool = True) -> None:
        self._numbers(DTYPES.index(array.dtype.type), array.ndim, *array.shape)
        self._text(array.tobytes() if has_bytes else b"")

    def _text(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        self._numbers(len(data))
        self._pieces.append(data + bytes(-len(data) % 8))

    def _numbers(self, *numbers: int) -> None:
        self._pieces.append(struct.pack(f"<{len(numbers)}q", *numbers))


class Submodule:
    """A submodule of the core whose functions are written down."""

    def __init__(self, tape: Tape, name: str) -> None:
        self._tape, self._name = tape, name

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._tape._call, f"{self._name}.{name}")


class Methods:
    """An object of the core whose methods are written down."""

    def __init__(self, tape: Tape, name: str, of: object) -> None:
        self._tape, self._name, self.of = tape, name, of

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._tape._call, f"{self._name}.{name}", self)


def function(name: str) -> Callable[..., Any]:
    found: Any = _core
    for part in name.split("."):
        found = getattr(found, part)
    return found


def told(result: Any) -> Any:
    """What a result tells about the core: a speed comes first, and tells about the machine."""
    return result[-1] if isinstance(result, tuple) else result


# ---- replaying -----------------------------------------------------------------------------------


class Player:
    """Replays a tape with the core of this Python."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._objects: list[object] = []
        self._states: dict[int, np.ndarray] = {}
        self.n_calls = 0

    def play(self) -> Iterator[str]:
        """What differs."""
        while self._at < len(self._data):
            yield from self._play_one()
            self.n_calls += 1

    def _play_one(self) -> Iterator[str]:
        name, label = self._text().decode(), self._text().decode()
        args, expected = [], []
        for _ in range(self._number()):
            value, answer = self._value()
            args.append(value)
            expected.append(answer)
        result = told(function(name)(*args))
        kind = KINDS(self._number())
        if kind is KINDS.OBJECT:
            assert self._number() == len(self._objects)
            self._objects.append(result)
        elif result != (wanted := self._plain(kind)):
            yield f"{name} {label}: found {result}, expected {wanted}"
        for found, answer in zip(args, expected, strict=True):
            if answer is not None and (place := first_difference(found, answer)) is not None:
                pair = found.reshape(-1)[place], answer.reshape(-1)[place]
                yield f"{name} {label}: at {place} found {pair[0]!r}, expected {pair[1]!r}"

    def _value(self) -> tuple[Any, np.ndarray | None]:
        """An argument, and what it must be afterwards."""
        kind = KINDS(self._number())
        if kind is KINDS.OBJECT:
            return self._objects[self._number()], None
        if kind is KINDS.ARRAY:
            return self._array()[0], None
        if kind is KINDS.ANSWER:
            answer, _ = self._array()
            return np.full(answer.nbytes, 0xFF, np.uint8).view(answer.dtype).reshape(
                answer.shape
            ), answer
        if kind is KINDS.STATE:
            number = self._number()
            array, has_bytes = self._array()
            state = self._states.setdefault(number, np.zeros_like(array))
            return state, array if has_bytes else None
        return self._plain(kind), None

    def _plain(self, kind: KINDS) -> Any:
        if kind is KINDS.NONE:
            return None
        if kind is KINDS.FLOAT:
            return struct.unpack("<d", self._take(8))[0]
        number = self._number()
        return bool(number) if kind is KINDS.BOOL else number

    def _array(self) -> tuple[np.ndarray, bool]:
        dtype = DTYPES[self._number()]
        shape = [self._number() for _ in range(self._number())]
        data = self._text()
        if not data:
            return np.zeros(shape, dtype), False
        return np.frombuffer(data, dtype).reshape(shape), True

    def _text(self) -> bytes:
        n = self._number()
        return self._take(n + -n % 8)[:n]

    def _number(self) -> int:
        return int(struct.unpack("<q", self._take(8))[0])

    def _take(self, n: int) -> bytes:
        self._at += n
        return self._data[self._at - n : self._at]


def first_difference(found: np.ndarray, expected: np.ndarray) -> int | None:
    """The place of the first number with other bits. Which not-a-number it is, CPUs choose."""
    bits = f"u{found.itemsize}"
    differ = found.reshape(-1).view(bits) != expected.reshape(-1).view(bits)
    if found.dtype == np.float32:
        differ &= ~(np.isnan(found.reshape(-1)) & np.isnan(expected.reshape(-1)))
    return int(differ.argmax()) if differ.any() else None


def main(path: str) -> int:
    ops.set_n_threads(2)
    player = Player(Path(path).read_bytes())
    differences = list(player.play())
    print(*differences, sep="\n", file=sys.stderr)
    print(ops.isa(), player.n_calls)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
