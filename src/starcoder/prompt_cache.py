"""Prompt caches: computed keys and values in a file, for the next start of the program.

A file belongs to one model, by its fingerprint, and is of no use to any other. It begins with what
it holds: the tokens of each block and which block they continue; the blocks themselves follow. It
is written beside its name and renamed, while requests go on. It says what was asked, so that a new
one is its owner's alone to read. An empty file, as `mktemp` makes one, holds nothing yet.

    magic            16 bytes, which end with the version of the format
    head             8 bytes: how long the table is, and its CRC-32, little-endian
    table            JSON: fingerprint, salts, the tokens of the blocks, the CRC-32 of what follows
    blocks           keys, then values, of all layers
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from starcoder import formats
from starcoder.core.batch import BLOCK_LEN
from starcoder.engine import Engine, Entry, Loop, Restorer, hold, release
from starcoder.errors import FormatError, StarcoderError, WriteError

__all__ = ["ForeignFileError", "load", "save"]

_MAGIC = b"starcoder kv 01\n"
_HEAD = struct.Struct("<II")
_PRIVATE = 0o600
_PIECE = 64  # blocks that are copied at once
_MOST_TABLE = 1 << 28  # bytes
_AGAIN = "it is computed afresh; delete the file, or let it be written again"


class ForeignFileError(FormatError):
    """A file that is no prompt cache of this model: it may be of use to something else."""


@dataclass(frozen=True, slots=True)
class _Table:
    entries: list[Entry]
    crc: int  # of the blocks
    start: int  # of the blocks in the file


def save(loop: Loop, path: Path, fingerprint: str, max_bytes: int) -> int:
    """Write what is computed to a file, what was used last first; returns how many tokens.

    Raises:
        ForeignFileError: a file of that name that is something else, which stays.
        WriteError: no room, no permission, no such folder.
    """
    if os.path.exists(path):  # `Path.exists` raises for a name that is too long
        _check_ours(path, fingerprint)
    cache = loop.call(lambda engine: engine.cache)
    most = max_bytes // cache.block_bytes
    held, nodes, entries = loop.call(lambda engine: hold(engine, most))
    blocks = [node.block for node in nodes]
    starts = range(0, len(blocks), _PIECE)

    def piece(start: int) -> NDArray[np.uint8]:
        return cache.read(blocks[start : start + _PIECE]).view(np.uint8).reshape(-1)

    def end() -> Iterator[bytes]:
        """Nothing; raises if what was read is no good, before the old file is replaced."""
        if loop.call(lambda engine: engine.blocks is not held):
            raise StarcoderError(str(path), "a cache that began anew meanwhile", "one that stays")
        yield b""

    try:
        crc = 0
        for start in starts:
            crc = zlib.crc32(piece(start).data, crc)
        table = _table_bytes(fingerprint, entries, crc)
        head = _MAGIC + _HEAD.pack(len(table), zlib.crc32(table)) + table
        nbytes = len(head) + len(blocks) * cache.block_bytes
        formats.write_file(path, nbytes, chain([head], map(piece, starts), end()), mode=_PRIVATE)
    finally:
        loop.call(lambda engine: release(engine, held, nodes))
    return sum(len(entry.tokens) for entry in entries)


def load(loop: Loop, path: Path, fingerprint: str) -> int:
    """Take over what a file holds, as far as there is room; returns how many tokens.

    Raises:
        FormatError: no such file, or one that is damaged, of another version or another model.
    """
    try:
        with _opened(path) as file:
            return _load(loop, file, path, fingerprint)
    except OSError as error:
        raise FormatError(str(path), f"no file that can be read ({error.strerror})", "") from None


# ---- reading -------------------------------------------------------------------------------------


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except ValueError as error:  # a name with a zero byte
        raise FormatError(str(path), f"no file that can be read ({error})", "") from None


def _load(loop: Loop, file: BinaryIO, path: Path, fingerprint: str) -> int:
    size = os.fstat(file.fileno()).st_size
    if not size:
        return 0
    cache = loop.call(lambda engine: engine.cache)
    table = _read_table(file, path, fingerprint)
    entries, nbytes = table.entries, cache.block_bytes
    if size != table.start + len(entries) * nbytes:
        raise _damaged(path, f"{size} bytes")
    restorer = loop.call(lambda engine: Restorer(engine, entries))
    try:
        crc, has_room = 0, True
        for i in range(0, len(entries), _PIECE):
            n = min(_PIECE, len(entries) - i)
            raw = file.read(n * nbytes)
            crc = zlib.crc32(raw, crc)
            if len(raw) < n * nbytes:
                raise _damaged(path, f"{len(raw)} of {n * nbytes} bytes")
            if has_room:
                data = np.frombuffer(raw, np.uint16).reshape(n, -1)
                has_room = loop.call(partial(_put, restorer, data)) == n
        if crc != table.crc:
            raise _damaged(path, "another checksum")
        return loop.call(lambda engine: restorer.finish())
    finally:
        loop.call(lambda engine: restorer.abandon())


def _put(restorer: Restorer, data: NDArray[np.uint16], _: Engine) -> int:
    return restorer.put(data)


def _read_table(file: BinaryIO, path: Path, fingerprint: str) -> _Table:
    magic = file.read(len(_MAGIC))
    if magic[:13] != _MAGIC[: len(magic)][:13]:
        raise ForeignFileError(str(path), "another kind of file", "a prompt cache", _ELSEWHERE)
    if len(magic) < len(_MAGIC):
        raise _damaged(path, f"{len(magic)} bytes")
    if magic != _MAGIC:
        raise _damaged(path, "a prompt cache of another version")
    head = file.read(_HEAD.size)
    n, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
    raw = file.read(n) if n <= _MOST_TABLE else b""
    if not raw or len(raw) < n or zlib.crc32(raw) != crc:
        raise _damaged(path, "a damaged table")
    try:
        table = json.loads(raw)
        made = _parsed(table, file.tell())
        found = str(table["fingerprint"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError):
        raise _damaged(path, "a damaged table") from None
    if found != fingerprint:
        raise ForeignFileError(str(path), "a cache of another model", "one of this", _ELSEWHERE)
    return made


_ELSEWHERE = "it stays as it is; choose another file"


def _parsed(table: Any, start: int) -> _Table:
    """A table as it is used; raises what Python raises for one that makes no sense."""
    salts = [bytes.fromhex(salt) for salt in table["salts"]]
    entries = list[Entry]()
    for i, (salt, parent, tokens) in enumerate(table["blocks"]):
        entry = Entry(salts[salt], parent, tuple(tokens))
        if not all(type(x) is int for x in (parent, *tokens)) or not tokens:
            raise ValueError
        if not -1 <= parent < i or len(tokens) > BLOCK_LEN:
            raise ValueError
        above = entries[parent] if parent >= 0 else None
        if above and (len(above.tokens) < BLOCK_LEN or above.salt != entry.salt):
            raise ValueError
        entries.append(entry)
    return _Table(entries, int(table["crc"]), start)


def _damaged(path: Path, found: str) -> FormatError:
    return FormatError(str(path), found, "a whole prompt cache", _AGAIN)


# ---- writing -------------------------------------------------------------------------------------


def _check_ours(path: Path, fingerprint: str) -> None:
    """Refuse to replace a file that is something else."""
    try:
        with path.open("rb") as file:
            _read_table(file, path, fingerprint)
    except ForeignFileError:
        raise
    except FormatError:  # a damaged one of ours
        return
    except OSError as error:
        raise WriteError(str(path), f"no access ({error.strerror})", "a file to replace") from None


def _table_bytes(fingerprint: str, entries: list[Entry], crc: int) -> bytes:
    salts = sorted({entry.salt for entry in entries})
    number = {salt: i for i, salt in enumerate(salts)}
    table = {
        "fingerprint": fingerprint,
        "salts": [salt.hex() for salt in salts],
        "blocks": [[number[e.salt], e.parent, e.tokens] for e in entries],
        "crc": crc,
    }
    return json.dumps(table, separators=(",", ":")).encode()
