"""The header of a GGUF file: typed metadata, and where each tensor says it is.

    "GGUF"  u32 version  u64 n_tensors  u64 n_keys
    n_keys     x  string key, u32 type, value        string: u64 length, UTF-8 bytes
    n_tensors  x  string name, u32 n_dims, n_dims x u64, u32 type, u64 offset from `data`
    padding to `general.alignment`, then data

What the keys mean is for `gguf.reader` and `gguf.vocab` to know. Values that are not read are
stepped over, so a header takes little more memory than the texts of its vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from starcoder.formats.byte_level import MAX_TOKEN_LEN, MAX_TOKENS, MAX_VOCAB_BYTES
from starcoder.formats.io.mapped import Cursor
from starcoder.formats.io.reject import DAMAGED

__all__ = ["INTEGERS", "MAGIC", "MAX_HEADER", "Info", "Meta", "Strings", "read_header"]

MAGIC = b"GGUF"

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# fmt: off
_SCALARS = {  # type number: how the value is stored
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}
# fmt: on
_SCALAR = {number: struct.Struct(fields) for number, fields in _SCALARS.items()}
_I32, _STRING, _ARRAY = 5, 8, 9
INTEGERS, _FLOATS = frozenset({0, 1, 2, 3, 4, 5, 10, 11}), frozenset({6, 12})

# Bounds on what is read before it is known to be a model of ours. A real header has about 30 keys,
# 300 tensors and 2 MB. Those on bytes are on their sum: many small things are large too.
_MAX_KEYS = _MAX_TENSORS = 1 << 16
_MAX_KEY_LEN, _MAX_NAME_LEN, _MAX_STRING_LEN = 65535, 64, 1 << 20
MAX_HEADER = 64 << 20  # of all parts of a model
_MAX_KEY_BYTES = 1 << 20  # of the names of all keys
_MAX_DIMS = 4

_STRING_LISTS = (  # the others are stepped over
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "starcoder_py.unembedded_tokens",
)
_MAX_ITEM_LEN = 2 * MAX_TOKEN_LEN + 1  # a merge: two texts and the space between them

_AGAIN = "convert the model again"

Strings = Sequence[str | bytes]  # all are bytes where one of them is not UTF-8


class _Text(NamedTuple):
    """A string that stays in the file until it is read."""

    start: int
    length: int


class _Array(NamedTuple):
    """An array that stays in the file: numbers, or strings that are not read."""

    type: int
    length: int
    start: int


@dataclass(frozen=True, slots=True)
class Meta:
    """Keys of the header with their types; each accessor demands the type that it returns."""

    cursor: Cursor
    values: dict[str, tuple[int, Any]]
    spans: dict[str, slice]  # where each value stands in the file, with its type before it

    def _get(self, key: str, kinds: frozenset[int], kind: str, default: Any) -> Any:
        number, value = self.values.get(key, (-1, default))
        if value is None:
            self.cursor.fail(key, "no such key", kind, _AGAIN)
        if number != -1 and number not in kinds:
            self.cursor.fail(key, f"a value of type {number}", kind, _AGAIN)
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of any of GGUF's integer types."""
        value: int = self._get(key, INTEGERS, "a whole number", default)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number with a fraction."""
        value: float = self._get(key, _FLOATS, "a number with a fraction", default)
        return value

    def text(self, key: str, default: str | None = None, errors: str = "strict") -> str:
        """A text, decoded as UTF-8."""
        value: str | _Text = self._get(key, frozenset({_STRING}), "a string", default)
        if isinstance(value, str):
            return value
        place = Cursor(self.cursor.name, self.cursor.data, value.start)
        return place.text(value.length, _MAX_STRING_LEN, key, errors)

    def strings(self, key: str) -> Strings:
        """An array of strings, each still encoded."""
        value = self._get(key, frozenset({_ARRAY}), "an array of strings", None)
        if not isinstance(value, list):
            self.cursor.fail(key, f"an array of type {value.type}", "an array of strings", _AGAIN)
        return value

    def int32s(self, key: str, count: int | None = None) -> NDArray[np.int32]:
        """The numbers of an array, which must be so many; None: any number."""
        value = self._get(key, frozenset({_ARRAY}), "an array of 32-bit integers", None)
        if not isinstance(value, _Array) or value.type != _I32:
            self.cursor.fail(key, "an array of another type", "an array of 32-bit integers", _AGAIN)
        if count is not None and value.length != count:
            found = f"{value.length} values"
            self.cursor.fail(key, found, f"{count}, one for each token", _AGAIN)
        return np.frombuffer(self.cursor.data, "<i4", value.length, value.start)


class Info(NamedTuple):
    """Where a tensor says it is."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def read_header(cursor: Cursor, limit: int = MAX_HEADER) -> tuple[int, Meta, list[Info]]:
    """Version, keys and tensors of a header of at most `limit` bytes; the cursor stands behind it.

    Raises:
        FormatError: what is no such header.
    """
    cursor.skip(len(MAGIC), "magic")
    (version,) = cursor.unpack(_U32, "version")
    if version not in (2, 3):
        big = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3)
        found = "a big-endian file" if big else f"version {version}"
        cursor.fail("GGUF version", found, "2 or 3, little-endian", _AGAIN)
    (n_tensors,), (n_keys,) = cursor.unpack(_U64, "n_tensors"), cursor.unpack(_U64, "n_keys")
    # The shortest key: length, type, one byte of value. The shortest tensor: one dimension.
    _check_count(cursor, "number of keys", n_keys, _MAX_KEYS, 13)
    _check_count(cursor, "number of tensors", n_tensors, _MAX_TENSORS, 32)
    meta, left = Meta(cursor, {}, {}), _MAX_KEY_BYTES
    for _ in range(n_keys):
        left -= _read_key(meta, min(left, _MAX_KEY_LEN))
        _check_pos(cursor, limit)
    infos = []
    for _ in range(n_tensors):
        infos.append(_read_info(cursor))
        _check_pos(cursor, limit)
    return version, meta, infos


def _read_key(meta: Meta, max_len: int) -> int:
    """Read a key and its value; returns the bytes of its name, of which there may be `max_len`."""
    cursor = meta.cursor
    (length,) = cursor.unpack(_U64, "key")
    key = cursor.text(length, max_len, "key")
    if key in meta.values:
        cursor.fail(f"key {key}", "the same key twice", "one of each", DAMAGED)
    start = cursor.pos
    meta.values[key] = _read_value(cursor, key)
    meta.spans[key] = slice(start, cursor.pos)
    return int(length)


def _check_pos(cursor: Cursor, limit: int) -> None:
    if cursor.pos > limit:
        cursor.fail("header", f"more than {limit} bytes", "a smaller one, as models have")


def _check_count(cursor: Cursor, what: str, count: int, limit: int, min_bytes: int) -> None:
    if count > cursor.left // min_bytes:
        found = f"{count} in the {cursor.left} bytes that are left of the file"
        cursor.fail(what, found, f"at most {cursor.left // min_bytes}", DAMAGED)
    if count > limit:
        cursor.fail(what, str(count), f"at most {limit}")


def _read_value(cursor: Cursor, key: str) -> tuple[int, Any]:
    (number,) = cursor.unpack(_U32, key)
    if number == _STRING:
        (length,) = cursor.unpack(_U64, key)
        return number, _Text(cursor.skip(length, key), length)
    if number == _ARRAY:
        return number, _read_array(cursor, key)
    if number not in _SCALAR:
        cursor.fail(key, f"a value of type {number}", "a type from 0 to 12", DAMAGED)
    return number, cursor.unpack(_SCALAR[number], key)[0]


def _read_array(cursor: Cursor, key: str) -> _Array | Strings:
    (number,), (count,) = cursor.unpack(_U32, key), cursor.unpack(_U64, key)
    if number == _STRING:
        _check_count(cursor, key, count, MAX_TOKENS, 8)
        if key in _STRING_LISTS:
            return _read_strings(cursor, key, count)
        return _Array(number, count, _skip_strings(cursor, key, count))
    if number not in _SCALAR:
        cursor.fail(key, f"an array of type {number}", "an array of numbers or strings")
    size = _SCALAR[number].size
    _check_count(cursor, key, count, MAX_HEADER, size)
    return _Array(number, count, cursor.skip(count * size, key))


def _skip_strings(cursor: Cursor, key: str, count: int) -> int:
    """Step over strings that are not read; hostile headers hold millions, so in a bare loop."""
    unpack, data, place, last = _U64.unpack_from, cursor.data, cursor.pos, len(cursor.data) - 8
    for _ in range(count):
        if place > last:
            cursor.fail(key, "an array that the file ends in", f"{count} strings", DAMAGED)
        place += 8 + unpack(data, place)[0]
    return cursor.skip(place - cursor.pos, key)


def _read_strings(cursor: Cursor, key: str, count: int) -> Strings:
    """The `count` strings from here on. StarCoder's 49,152 take 12 ms; one by one 45 ms."""
    window = cursor.data[cursor.pos : cursor.pos + 24 * count + 64]
    joined = _join_strings(window, count) if count else b""
    if joined is None or joined.count(b"\n") != count:
        raws = _read_strings_singly(cursor, key, count)
    else:
        cursor.skip(len(joined) + 7 * count, key)
        with suppress(UnicodeDecodeError):
            return joined.decode().split("\n")[1:]
        raws = joined.split(b"\n")[1:]
    with suppress(UnicodeDecodeError):
        return [raw.decode() for raw in raws]
    return raws


def _read_strings_singly(cursor: Cursor, key: str, count: int) -> list[bytes]:
    strings, limit = [], cursor.pos + MAX_VOCAB_BYTES
    for _ in range(count):
        (length,) = cursor.unpack(_U64, key)
        strings.append(cursor.take(length, _MAX_ITEM_LEN, key))
        if cursor.pos > limit:
            cursor.fail(key, f"more than {MAX_VOCAB_BYTES} bytes", "the texts of a vocabulary")
    return strings


def _join_strings(window: bytes, count: int) -> bytes | None:
    """The texts of the first `count` strings, each after a line feed, or None if it cannot tell.

    Lengths are small numbers and text has no zeros, so eight bytes below 65,536 that no zero
    follows are a length. If these lengths lead from each to the next, the guess was right.
    """
    n = len(window) - 8
    numbers = np.ndarray((n,), "<u8", window, 0, (1,))  # the one that starts at each byte
    after = np.frombuffer(window, np.uint8, n, 8)
    places = np.flatnonzero((numbers < 1 << 16) & (after != 0))[:count]
    lengths = numbers[places].astype(np.int64)
    ends = places + 8 + lengths
    chained = len(places) == count and places[0] == 0 and np.array_equal(places[1:], ends[:-1])
    if not chained or ends[-1] > len(window) or lengths.max() > _MAX_ITEM_LEN:
        return None
    lines = np.frombuffer(window, np.uint8, ends[-1]).copy()
    lines[places], lines[places + 1] = ord("\n"), 0  # the other six bytes are zeros
    joined = lines.tobytes().translate(None, b"\0")
    return joined if len(joined) == count + lengths.sum() else None


def _read_info(cursor: Cursor) -> Info:
    (length,) = cursor.unpack(_U64, "tensor name")
    name = cursor.text(length, _MAX_NAME_LEN, "tensor name")
    what = f"tensor {name}"
    (n_dims,) = cursor.unpack(_U32, what)
    if not 1 <= n_dims <= _MAX_DIMS:
        cursor.fail(what, f"{n_dims} dimensions", f"1 to {_MAX_DIMS}")
    dims = [cursor.unpack(_U64, what)[0] for _ in range(n_dims)]
    (number,), (offset,) = cursor.unpack(_U32, what), cursor.unpack(_U64, what)
    return Info(name, tuple(reversed(dims)), number, offset)
