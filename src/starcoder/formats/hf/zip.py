r"""The directory of a ZIP file whose entries are stored as they are. Reading only.

    entries: "PK\3\4" header, name, extra, bytes    directory: "PK\1\2" records    "PK\5\6" end

Only what `torch.save` writes is accepted: nothing compressed, no comment, the end record at the
end. Why not the standard `zipfile`: see `docs/decisions.md`.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from starcoder.formats.io.mapped import Cursor
from starcoder.formats.io.reject import DAMAGED, reject

__all__ = ["MAGIC", "Entry", "read_directory"]

MAGIC = b"PK\3\4"

_LOCAL = struct.Struct("<4s 22x 2H")  # lengths of name and extra field
_RECORD = struct.Struct("<4s 4x 2H 8x 2I 3H 8x I")
_END, _END_MAGIC = struct.Struct("<4s 6x H 2I H"), b"PK\5\6"
_LOCATOR, _LOCATOR_MAGIC = struct.Struct("<4s 4x Q 4x"), b"PK\6\7"
_END64, _END64_MAGIC = struct.Struct("<4s 28x 3Q"), b"PK\6\6"
_RECORD_MAGIC, _SEE_EXTRA = b"PK\1\2", 0xFFFFFFFF
_ENCRYPTED = 1
_MAX_ENTRIES, _MAX_DIRECTORY = 1 << 13, 1 << 20  # StarCoder's largest file has 500 entries
_WHAT = "ZIP directory"


class Entry(NamedTuple):
    """Where the bytes of an entry lie in the file."""

    start: int
    end: int


def read_directory(cursor: Cursor) -> dict[str, Entry]:
    """The entries by name, checked to lie in the file and apart from each other.

    Raises:
        FormatError: a damaged or compressed file, an entry that comes twice or over another.
    """
    count, size, start = _find_directory(cursor)
    end = start + size
    if count > _MAX_ENTRIES or size > _MAX_DIRECTORY:
        cursor.fail(_WHAT, f"{count} entries in {size} bytes", f"at most {_MAX_ENTRIES}")
    if end > len(cursor.data):
        cursor.fail(_WHAT, f"its end at {end}", f"at most {len(cursor.data)}, the file's", DAMAGED)
    entries: dict[str, Entry] = {}
    place = start
    for _ in range(count):
        name, entry, place = _read_record(cursor, place, start)
        if name in entries:
            cursor.fail(f"entry {name}", "the same name twice", "one of each", DAMAGED)
        entries[name] = entry
    if place != end:
        cursor.fail(_WHAT, f"{place - start} bytes of records", f"{size}", DAMAGED)
    for before, after in pairwise(sorted(entries.values())):
        if before.end > after.start:
            cursor.fail(_WHAT, "entries that overlap", "each in a place of its own", DAMAGED)
    return entries


def _find_directory(cursor: Cursor) -> tuple[int, int, int]:
    """Number of entries, bytes and start of the directory, from the end of the file."""
    place = len(cursor.data) - _END.size
    magic, count, size, start, comment = _at(cursor, _END, place)
    if magic != _END_MAGIC or comment:
        cursor.fail(_WHAT, "no end record", "one that ends the file", DAMAGED)
    place -= _LOCATOR.size
    if place >= 0 and cursor.data[place : place + 4] == _LOCATOR_MAGIC:
        magic, count, size, start = _at(cursor, _END64, _at(cursor, _LOCATOR, place)[1])
        if magic != _END64_MAGIC:
            cursor.fail(_WHAT, "no end record of 64 bits", "the one that the file names", DAMAGED)
    return count, size, start


def _read_record(cursor: Cursor, place: int, limit: int) -> tuple[str, Entry, int]:
    """Name and place of one entry, whose bytes end before `limit`; where the next record is."""
    record = _at(cursor, _RECORD, place)
    magic, flags, method, stored, size, name_len, extra_len, comment_len, header = record
    place += _RECORD.size
    name_end, extra_end = place + name_len, place + name_len + extra_len
    raw = cursor.data[place:name_end]
    if magic != _RECORD_MAGIC or not raw.isascii() or extra_end > len(cursor.data):
        cursor.fail(_WHAT, "a damaged record", "the name and place of an entry", DAMAGED)
    name = raw.decode()
    if method or flags & _ENCRYPTED:
        advice = "save it again with torch.save, which stores entries as they are"
        cursor.fail(f"entry {name}", "a compressed or encrypted entry", "a stored one", advice)
    if _SEE_EXTRA in (stored, size, header):
        wide = _wide(cursor.data[name_end:extra_end], (size, stored, header))
        if wide is None:
            cursor.fail(f"entry {name}", "no sizes of 64 bits", "the sizes of the entry", DAMAGED)
        size, stored, header = wide
    start = _data_start(cursor, name, header)
    if size != stored or start + size > limit:
        cursor.fail(
            f"entry {name}", f"{size} bytes from {start} on", "bytes inside the file", DAMAGED
        )
    return name, Entry(start, start + size), extra_end + comment_len


def _wide(extra: bytes, numbers: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """The numbers, with those that stand in the extra field for 64-bit ones taken from there."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        field = extra[place + 4 : place + 4 + length]
        if kind == 1 and len(field) >= 8 * numbers.count(_SEE_EXTRA):
            wide = iter(struct.unpack_from(f"<{len(field) // 8}Q", field))
            size, stored, header = (next(wide) if n == _SEE_EXTRA else n for n in numbers)
            return size, stored, header
        place += 4 + length
    return None


def _data_start(cursor: Cursor, name: str, header: int) -> int:
    """Where the bytes of an entry start: after its own header, which must have the same name."""
    magic, name_len, extra_len = _at(cursor, _LOCAL, header)
    name_start = header + _LOCAL.size
    if magic != MAGIC or cursor.data[name_start : name_start + name_len] != name.encode():
        cursor.fail(f"entry {name}", "another header than the directory names", "its own", DAMAGED)
    start: int = name_start + name_len + extra_len
    return start


def _at(cursor: Cursor, fields: struct.Struct, place: int) -> tuple[Any, ...]:
    if not 0 <= place <= len(cursor.data) - fields.size:
        reject(Path(cursor.name), _WHAT, f"the place {place}", f"0 to {len(cursor.data)}", DAMAGED)
    numbers: tuple[Any, ...] = fields.unpack_from(cursor.data, place)
    return numbers
