"""A machine for pickles that can make text, numbers, tuples and tables, and nothing else.

A pickle is a program. The standard machine imports and calls whatever a file names; this one looks
names up in a table that its caller gives, where they stand for plain values and for a few functions
of ours. Nothing that a file names is called, imported or even found, and there is no other path.

Only the operations that `torch.save` uses exist. What they mean for weights, `hf.torch` knows. Why
not the standard `pickletools`: see `docs/decisions.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from starcoder.formats.io.reject import DAMAGED

__all__ = ["MAX_PICKLE", "UNSAFE", "Machine", "Name"]

# StarCoder's has 100 kB in 22,000 steps. A step makes 100 bytes of objects at most, on average.
MAX_PICKLE = 1 << 20
_MAX_STEPS = 1 << 17
_MAX_LINE, _MAX_TEXT = 128, 4096

UNSAFE = "only weights are read; load it where you trust it and save it as safetensors"


class Name(NamedTuple):
    """What a name that a pickle may use stands for."""

    kind: str
    make: Callable[[tuple[Any, ...]], Any] | None = None  # what calling it with arguments gives
    size: int = 0  # of an element, where it is a type of numbers


class Machine:
    """Runs one pickle.

    Args:
        code: the pickle, at most `MAX_PICKLE` bytes.
        names: what `module name` stands for.
        load: makes the value of a persistent id, the pickle's word for what lies outside it.
        fail: raises the error of what was found, what was expected and what to do.
    """

    def __init__(
        self,
        code: bytes,
        names: Mapping[bytes, Name],
        load: Callable[[tuple[Any, ...]], Any],
        fail: Callable[[str, str, str], NoReturn],
    ) -> None:
        self.code, self.names, self.load, self._fail = code, names, load, fail
        self.place = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The one value that the pickle makes."""
        for _ in range(_MAX_STEPS):
            step = self.take(1)
            if step == _STOP:
                break
            operation = _OPERATIONS.get(step)
            if operation is None:
                self.fail(f"the operation {step!r}", "those that torch.save uses", UNSAFE)
            operation(self)
        else:
            self.fail(f"more than {_MAX_STEPS} steps", "the steps of a table of tensors")
        return self.finish()

    def finish(self) -> Any:
        """The object on top of the stack, which must be all that is left."""
        value = self.pop(object)
        if self.stack or self.place != len(self.code):
            self.fail("something beside its value", "one value and the end", DAMAGED)
        return value

    def fail(self, found: str, expected: str, advice: str = "") -> NoReturn:
        """Ends reading with an error at this place."""
        self._fail(found, expected, advice)

    # --------------------------------------------------------------------------------------------
    # The bytes of the program

    def take(self, n: int) -> bytes:
        """The next n bytes of the program."""
        start = self.place
        self.place += n
        if self.place > len(self.code):
            self.fail("an end in the middle of a step", "a whole pickle", DAMAGED)
        return self.code[start : self.place]

    def number(self, fields: struct.Struct) -> int:
        """The next bytes as a number."""
        value: int = fields.unpack(self.take(fields.size))[0]
        return value

    def long(self) -> int:
        """The next bytes as an integer of the length that stands before it."""
        length = self.number(_U8)
        if length > 8:
            self.fail(f"a number of {length} bytes", "at most 8")
        return int.from_bytes(self.take(length), "little", signed=True)

    def text(self) -> str:
        """The next bytes as text, behind their length."""
        length = self.number(_U32)
        if length > _MAX_TEXT:
            self.fail(f"a text of {length} bytes", f"at most {_MAX_TEXT}")
        raw = self.take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(f"the text {raw[:16]!r}", "UTF-8", DAMAGED)

    def name(self) -> Name:
        """What `module`, line feed, `name`, line feed stands for: the one way that names come."""
        line = self.code[self.place : self.place + _MAX_LINE]
        module, name, _ = (*line.split(b"\n", 2), b"", b"")[:3]
        self.take(len(module) + len(name) + 2)
        value = self.names.get(module + b" " + name)
        if value is None:
            self.fail(f"the name {module + b' ' + name!r}", "names of tensors and tables", UNSAFE)
        return value

    # --------------------------------------------------------------------------------------------
    # The stack and the memo

    def push(self, value: Any) -> None:
        """Puts a value on the stack."""
        self.stack.append(value)

    def pop(self, kind: type) -> Any:
        """Takes a value of this kind from the stack."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            self.fail("a step that lacks its operands", "a whole pickle", DAMAGED)
        value = self.stack.pop()
        if kind is not object and type(value) is not kind:
            self.fail(f"a {type(value).__name__}", f"a {kind.__name__}", DAMAGED)
        return value

    def pop_tuple(self, n: int) -> tuple[Any, ...]:
        """Takes n values from the stack, in the order in which they were pushed."""
        return tuple([self.pop(object) for _ in range(n)][::-1])

    def pop_to_mark(self) -> list[Any]:
        """Takes all values down to the last mark."""
        if not self.marks:
            self.fail("a step that lacks its mark", "a whole pickle", DAMAGED)
        height = self.marks.pop()
        values = self.stack[height:]
        del self.stack[height:]
        return values

    def note(self, key: int) -> None:
        """Keeps the value on top under a number."""
        self.memo[key] = value = self.pop(object)
        self.push(value)

    def recall(self, key: int) -> None:
        """Pushes the value kept under a number."""
        if key not in self.memo:
            self.fail(f"a look at note {key}", "one that was taken", DAMAGED)
        self.push(self.memo[key])

    # --------------------------------------------------------------------------------------------
    # Steps that make something

    def set_items(self, items: list[Any]) -> None:
        """Adds keys and values to the table on top."""
        table = self.pop(dict)
        if len(items) % 2:
            self.fail("a table with half an item", "names and values", DAMAGED)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str or key in table:
                self.fail("a name in a table that is none, or comes twice", "one of each", DAMAGED)
            table[key] = value
        self.push(table)

    def build(self) -> None:
        """Attributes of a table: torch notes versions of layers there, which mean nothing here."""
        self.pop(dict)
        self.push(self.pop(dict))

    def call(self) -> None:
        """Replaces a name and its arguments by what the name makes of them."""
        arguments, name = self.pop(tuple), self.pop(Name)
        if name.make is None:
            self.fail(f"a call of {name.kind}", "a tensor or a table", UNSAFE)
        self.push(name.make(arguments))


_U8, _U16, _U32, _I32 = (struct.Struct(fields) for fields in ("B", "<H", "<I", "<i"))

_STOP = b"."
_OPERATIONS: dict[bytes, Callable[[Machine], object]] = {
    b"\x80": lambda m: m.take(1),  # protocol
    b"c": lambda m: m.push(m.name()),
    b"(": lambda m: m.marks.append(len(m.stack)),
    b"R": Machine.call,
    b"Q": lambda m: m.push(m.load(m.pop(tuple))),
    b"b": Machine.build,
    b"q": lambda m: m.note(m.number(_U8)),
    b"r": lambda m: m.note(m.number(_U32)),
    b"h": lambda m: m.recall(m.number(_U8)),
    b"j": lambda m: m.recall(m.number(_U32)),
    b"X": lambda m: m.push(m.text()),
    b"K": lambda m: m.push(m.number(_U8)),
    b"M": lambda m: m.push(m.number(_U16)),
    b"J": lambda m: m.push(m.number(_I32)),
    b"\x8a": lambda m: m.push(m.long()),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"N": lambda m: m.push(None),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push(m.pop_tuple(1)),
    b"\x86": lambda m: m.push(m.pop_tuple(2)),
    b"\x87": lambda m: m.push(m.pop_tuple(3)),
    b"t": lambda m: m.push(tuple(m.pop_to_mark())),
    b"}": lambda m: m.push({}),
    b"s": lambda m: m.set_items(list(m.pop_tuple(2))),
    b"u": lambda m: m.set_items(m.pop_to_mark()),
}
