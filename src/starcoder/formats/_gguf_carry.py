"""Keys of a GGUF file that writing it again shall not lose: author, license, chat template.

They are carried as bytes, type and value, and never looked into.
"""

from __future__ import annotations

import struct
from pathlib import Path

from starcoder.formats._bytes import Cursor, map_file
from starcoder.formats._gguf_header import MAGIC, _check_count, _read_value, _string

__all__ = ["carried_keys"]

_HEAD = struct.Struct("<IQQ")
_MAX_BYTES = 1 << 20  # of one key
_OURS = ("general.alignment", "general.quantization_version", "tokenizer.ggml.scores", "split.")


def carried_keys(path: Path) -> dict[str, bytes]:
    """The keys of a file that `gguf.read` accepted, each with its encoded type and value."""
    cursor = Cursor(str(path), map_file(path))
    cursor.skip(len(MAGIC), "magic")
    _, _, n_keys = cursor.unpack(_HEAD, "header")
    _check_count(cursor, "number of keys", n_keys, 1 << 16, 13)
    keys = {}
    for _ in range(n_keys):
        key = _string(cursor, 65535, "key")
        start = cursor.pos
        _read_value(cursor, key)
        if not key.startswith(_OURS) and cursor.pos - start <= _MAX_BYTES:
            keys[key] = cursor.data[start : cursor.pos]
    return keys
