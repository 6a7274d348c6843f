"""Single files of a Hugging Face directory: those that are not what their names say, and JSON.

A file may be a pointer that git-lfs left, or a web page that a download brought instead. Both are
named, whichever file it is. What the JSON means, its readers know.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from starcoder.errors import FormatError
from starcoder.formats.io.json import read_json_text
from starcoder.formats.io.mapped import map_file
from starcoder.formats.io.placeholders import placeholder
from starcoder.formats.io.reject import reject

__all__ = ["check_file", "load_optional", "load_table", "placeholder_at"]

_MAX_LEN = 16 << 20  # bytes; StarCoder's has 2 MB, 4 MB with merges as lists
_MAX_BRACKETS, _MAX_VALUES = 1 << 17, 1 << 18  # bound what its values take in memory


def placeholder_at(path: Path) -> tuple[str, str] | None:
    """What a file is that only has the name of the right one, and what to do; None if unknown."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError:
        return None  # its reader says why it cannot be read
    return placeholder(head)


def check_file(path: Path) -> Path:
    """The same path.

    Raises:
        FormatError: a git-lfs pointer, or a web page, in place of the file.
    """
    odd = placeholder_at(path)
    if odd is not None:
        found, advice = odd
        reject(path, "", found, "the file itself", advice)
    return path


def load_table(path: Path, max_values: int = _MAX_VALUES) -> dict[str, Any]:
    """A JSON object of at most so many values as a vocabulary has.

    Raises:
        FormatError: a file that is missing, longer, or holds something else.
    """
    data = map_file(check_file(path))
    if len(data) > _MAX_LEN:
        reject(path, "", f"{len(data)} bytes", f"at most {_MAX_LEN}")
    raw = data[:]
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS or raw.count(b",") > max_values:
        reject(path, "", "more values than a vocabulary has", f"at most {max_values} values")
    return read_json_text(raw, path)


def load_optional(path: Path, notices: list[str]) -> dict[str, Any]:
    """The JSON object of a file that a model can do without: empty if there is none, or a bad one.

    A bad one is worth a notice, not an end: weights and vocabulary are whole without it.
    """
    if not os.path.exists(path):
        return {}
    try:
        return load_table(path)
    except FormatError as error:
        notice = f"{path.name} is not used: {error.finding}"
        notices += [] if notice in notices else [notice]
        return {}
