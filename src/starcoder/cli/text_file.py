"""Text that the command line reads: prompts from files and stdin, tests of the tokenizer.

It is UTF-8. A byte order mark is no part of it, and CR LF, as Windows ends lines, is read as LF:
models have seen LF nearly always, and a prompt has one continuation wherever its file was saved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO

from starcoder.errors import InputError

__all__ = ["as_text", "read_file", "read_stdin"]

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks
_MAX_BYTES = 16 << 20  # far beyond any context; /dev/zero must end somewhere


def read_file(path: Path, option: str) -> str:
    """The text of a file that an option names.

    Raises:
        InputError: no file that can be read, too long a one, or no UTF-8.
    """
    try:
        with path.open("rb") as file:
            return _read(file, str(path))
    except (OSError, ValueError) as error:
        reason = _reason(error)
        advice = "use -p - for stdin" if str(path) == "-" else ""
        raise InputError(f"{option} {path}", reason, "a file that can be read", advice) from None


def read_stdin() -> str:
    """All text of stdin; errors as in `read_file`."""
    try:
        return _read(sys.stdin.buffer, "stdin")
    except OSError as error:
        raise InputError("stdin", _reason(error), "text that can be read") from None


def as_text(raw: bytes, where: str) -> str:
    """Bytes as text, unchanged.

    Raises:
        InputError: they are no UTF-8.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if raw.startswith(_UTF_16):
            raise InputError(where, "UTF-16 text", "UTF-8", "save it as UTF-8") from None
        found = f"byte 0x{raw[error.start]:02x} at offset {error.start}"
        raise InputError(where, found, "UTF-8 text", "convert it, for example with iconv") from None


def _reason(error: OSError | ValueError) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _read(file: IO[bytes], where: str) -> str:
    raw = file.read(_MAX_BYTES + 1) or b""  # None: a terminal or pipe that never waits
    if len(raw) > _MAX_BYTES:
        raise InputError(where, "more", f"at most {_MAX_BYTES >> 20} MiB of text")
    return as_text(raw, where).removeprefix("\ufeff").replace("\r\n", "\n")
