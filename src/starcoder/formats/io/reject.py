"""How readers end: with an error that names the file and the place in it, on one printable line."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from starcoder.errors import FormatError, printable

__all__ = ["DAMAGED", "reject", "shown"]

DAMAGED = "the file is truncated or damaged; copy or convert it again"


def shown(text: str, limit: int = 160) -> str:
    """Text from a file as it may be shown: no control characters, at most `limit` long."""
    return printable(text[:limit])


def reject(path: Path, what: str, found: str, expected: str, advice: str = "") -> NoReturn:
    """End reading with an error that names the file, and `what` in it if not empty."""
    where = f"{path}: {shown(what)}" if what else str(path)
    raise FormatError(where, shown(found), expected, advice)
