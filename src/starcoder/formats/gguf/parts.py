"""A GGUF model in several files, as `llama-gguf-split` cuts them: how the parts find each other.

    NAME-00001-of-00003.gguf    all keys, and perhaps tensors
    NAME-00002-of-00003.gguf    split.no = 1, split.count = 3, split.tensors.count, and tensors
    ...

Whichever part is given, the whole model is meant. A set that we wrote has the same `split_id` in
every part, so that parts of two models of one name are not taken for one. What reads several files
is here; `gguf.writer` cuts and writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from starcoder.errors import FormatError
from starcoder.formats.gguf.header import MAGIC, MAX_HEADER, Info, Meta, read_header
from starcoder.formats.io.mapped import Cursor, map_file
from starcoder.formats.io.placeholders import placeholder
from starcoder.formats.io.reject import DAMAGED

__all__ = [
    "COUNT",
    "NO",
    "N_TENSORS",
    "SPLIT_ID",
    "Part",
    "open_parts",
    "other_sets",
    "part_path",
]

NO, COUNT, N_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_ID = "starcoder_py.split_id"  # ours

_HEAD = 256  # bytes of a file that is none of ours
_MAX_TRIES = 5  # to open a set that another run is writing anew
_MAX_PARTS = 65535  # split.no has 16 bits
_NUMBERED = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.ASCII | re.IGNORECASE)
_ENDING = re.compile(r"-\d{5}-of-\d{5}(\.gguf)?$|\.gguf$", re.ASCII | re.IGNORECASE)
_TOGETHER = "put all parts of one model into one folder, under the names they came with"


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its header, and the cursor behind it."""

    cursor: Cursor
    version: int
    meta: Meta
    infos: list[Info]

    def fail(self, what: str, found: str, expected: str, advice: str = _TOGETHER) -> NoReturn:
        """End reading with an error that names the file."""
        self.cursor.fail(what, found, expected, advice)


def part_path(path: Path, number: int, count: int) -> Path:
    """The file of part `number`, from 0 on, of the model whose file, or one part, is `path`."""
    stem = _ENDING.sub("", path.name)
    suffix = path.suffix if path.suffix.lower() == ".gguf" else ".gguf"
    return path.with_name(f"{stem}-{number + 1:05}-of-{count:05}{suffix}")


def other_sets(path: Path, count: int) -> list[Path]:
    """Files beside `path` that are parts of the same name, but not of `count` parts."""
    stem = _ENDING.sub("", path.name)
    ours = {part_path(path, i, count).name for i in range(count)}
    return [
        file
        for file in sorted(path.parent.glob("*.gguf"))
        if file.name not in ours and _NUMBERED.sub("", file.name) == stem
    ]


def open_parts(path: Path) -> list[Part]:
    """The headers of all files of a model, the first part first; mostly it is one file.

    Raises:
        FormatError: a part that is missing, or of another model; a file that is no GGUF file.
    """
    for _ in range(_MAX_TRIES):
        parts = _open_parts(path)
        if len(parts) == 1 or not any(part.cursor.data.is_replaced() for part in parts):
            return parts
    found, expected = "parts that are being replaced", "parts that stay as they are"
    raise FormatError(str(path), found, expected, "try again when they are written")


def _open_parts(path: Path) -> list[Part]:
    given = _open(path, MAX_HEADER)
    keys = [key for key in (NO, COUNT, N_TENSORS) if key in given.meta.values]
    if not keys:
        return [given]
    count = given.meta.integer(COUNT)
    if count == 0:  # parts that llama-gguf-split merged
        return [given]
    number = given.meta.integer(NO)
    if not 0 <= number < count <= _MAX_PARTS:
        found = f"part {number}, counted from 0, of {count}"
        given.fail(NO, found, f"1 to {_MAX_PARTS} parts, and one of them", DAMAGED)
    if count > 1 and path.name != part_path(path, number, count).name:
        expected = f"the name {_name_among(path, number, count)}"
        where = f"part {number + 1} of {count} of a model"
        advice = "rename it: parts go by their names, and none of the others has this one"
        given.fail("", f"{where} under another name", expected, advice)
    parts, left = [], MAX_HEADER
    for i in range(count):
        part = given if i == number else _open_other(part_path(path, i, count), i, count, left)
        left -= part.cursor.pos
        parts.append(part)
    _check(parts)
    return parts


def _name_among(path: Path, number: int, count: int) -> str:
    """What a part under another name should be called: as the others beside it that lack it."""
    suffix = path.suffix if path.suffix.lower() == ".gguf" else ".gguf"
    ending = f"-{number + 1:05}-of-{count:05}{suffix}"
    beside = path.parent.glob(f"*-of-{count:05}{suffix}")
    stems = {_NUMBERED.sub("", file.name) for file in beside if _NUMBERED.search(file.name)}
    lacking = [stem for stem in stems if not (path.parent / (stem + ending)).exists()]
    if len(lacking) == 1:
        return lacking[0] + ending
    return f"NAME{ending}, where NAME is that of the other parts"


def _open(path: Path, limit: int) -> Part:
    cursor = Cursor(str(path), map_file(path))
    if cursor.data[: len(MAGIC)] != MAGIC:
        found, advice = placeholder(cursor.data[:_HEAD]) or ("no GGUF file", _TOGETHER)
        cursor.fail("", found, "a part of a GGUF model", advice)
    version, meta, infos = read_header(cursor, limit)
    return Part(cursor, version, meta, infos)


def _open_other(path: Path, number: int, count: int, limit: int) -> Part:
    """Another part than the one that was given."""
    if not path.exists():
        found = f"no part {number + 1} of {count} of this model"
        raise FormatError(str(path), found, f"all {count} parts", _TOGETHER)
    return _open(path, max(limit, 0))


def _check(parts: list[Part]) -> None:
    """All parts are of one model, and all of it."""
    count, first = len(parts), parts[0].meta
    n_tensors = first.integer(N_TENSORS)
    if n_tensors < 0:
        parts[0].fail(N_TENSORS, str(n_tensors), "a number of tensors", DAMAGED)
    for number, part in enumerate(parts):
        expected = f"part {number + 1} of {count} of a model of {n_tensors} tensors"
        meta = part.meta
        if NO not in meta.values:
            part.fail("", "a file that is no part of a model", expected)
        if (meta.integer(NO), meta.integer(COUNT)) != (number, count):
            found = f"part {meta.integer(NO) + 1} of {meta.integer(COUNT)}"
            part.fail("", found, expected)
        if meta.integer(N_TENSORS) != n_tensors:
            part.fail("", f"a part of a model of {meta.integer(N_TENSORS)} tensors", expected)
        # Another program that cuts our model anew leaves the key in the first part alone.
        if SPLIT_ID in meta.values and meta.text(SPLIT_ID) != first.text(SPLIT_ID, ""):
            part.fail("", "a part of another model", expected)
    names: set[str] = set()
    for part in parts:
        for info in part.infos:
            if info.name in names:
                part.fail(f"tensor {info.name}", "the same name in two parts", "one of each")
            names.add(info.name)
    if len(names) != n_tensors:
        found = f"{len(names)} tensors in {count} parts"
        parts[0].fail(N_TENSORS, found, f"{n_tensors}, as it says", DAMAGED)
