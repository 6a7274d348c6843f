"""Model files that are refused, and how; numbers at which they may be wrong."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import pytest

from starcoder import FormatError, formats

EDGES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63, 2**64 - 1)


def fails(path: Path, *words: str) -> FormatError:
    """Reading ends in a FormatError of one line that names the file and has these words."""
    with pytest.raises(FormatError) as caught:
        formats.read(path)
    message = str(caught.value)
    for word in (path.name, *words):
        assert word in message
    assert message.isprintable()
    assert len(message) < 1000
    return caught.value


def refused(path: Path, *words: str) -> str:
    """Reading ends in one line that has these words, and does not blame the bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError) as caught:
            formats.read(path)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "damaged" not in message
    assert message.isprintable()
    return message


def patched(path: Path, at: int, fields: str, *values: Any) -> Path:
    """The file with other numbers at one place."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(fields, raw, at, *values)
    path.write_bytes(raw)
    return path
