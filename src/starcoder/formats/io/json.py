"""Strict JSON: objects of files and of headers, refused where two readers could differ.

What the values mean is for the reader that asks.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any, NoReturn

from starcoder.errors import FormatError
from starcoder.formats.io.mapped import map_file
from starcoder.formats.io.reject import DAMAGED, reject

__all__ = ["load_json", "read_json", "read_json_text"]

_MEND = "mend it there, or copy the file again"


def load_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes.

    Raises:
        FormatError: a file that is missing or longer, or holds something else.
    """
    data = map_file(path)
    if len(data) > limit:
        reject(path, "", f"{len(data)} bytes", f"at most {limit}")
    return read_json_text(data[:], path)


def read_json_text(raw: bytes, path: Path) -> dict[str, Any]:
    """The JSON object of a file that people edit: some editors put a byte order mark first.

    Raises:
        FormatError: the bytes are no such object.
    """
    return read_json(raw.removeprefix(codecs.BOM_UTF8), str(path), _MEND)


def read_json(raw: bytes, where: str, advice: str = DAMAGED) -> dict[str, Any]:
    """A JSON object. Keys that come twice, NaN and anything that is not UTF-8 are refused.

    Args:
        raw: the bytes.
        where: what holds them, for messages.
        advice: what to do with text that is wrong, but neither cut off nor other bytes.

    Raises:
        FormatError: the bytes are no such object.
    """
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = str(error).splitlines()[0][:120]
        advice = DAMAGED if _is_cut_or_binary(error) else advice
        raise FormatError(where, f"no valid JSON ({reason})", "a JSON object", advice) from None
    if not isinstance(value, dict):
        raise FormatError(where, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def _is_cut_or_binary(error: Exception) -> bool:
    """Whether text ends too early, or is none."""
    if isinstance(error, json.JSONDecodeError):
        unclosed = error.msg.startswith("Unterminated")
        return unclosed or error.pos >= len(error.doc.rstrip())
    return isinstance(error, UnicodeDecodeError)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key that comes twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")
