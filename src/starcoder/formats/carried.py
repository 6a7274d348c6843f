"""Text among the keys that a model carries along: license, name, description.

`Checkpoint.carried` holds the keys of a GGUF file that say nothing of the model itself, each with
its type and value as that format encodes them. Readers of other formats add such keys, and who
shows a model reads them.
"""

from __future__ import annotations

import struct

from starcoder.model.checkpoint import Checkpoint

__all__ = ["carried_text", "encoded"]

_STRING = 8  # GGUF's number for a type
_HEAD = struct.Struct("<IQ")  # of a text: its type and its length in bytes


def carried_text(checkpoint: Checkpoint, key: str) -> str | None:
    """What a model carries under a key, if that is text: `general.license`, for example."""
    raw = checkpoint.carried.get(key, b"")
    is_text = len(raw) >= _HEAD.size and _HEAD.unpack_from(raw)[0] == _STRING
    return raw[_HEAD.size :].decode("utf-8", "replace") if is_text else None


def encoded(text: str) -> bytes:
    """A text as a value of a GGUF file, behind its type."""
    raw = text.encode("utf-8", "replace")
    return _HEAD.pack(_STRING, len(raw)) + raw
