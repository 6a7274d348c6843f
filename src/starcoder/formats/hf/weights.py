"""Which files of a Hugging Face directory hold its weights, and all tensors in them.

One file or shards, in safetensors or PyTorch's format, with an index or without. What is there
decides: an index is a table of contents that may be left from another time. It is believed where
the files leave a choice; where they contradict it, the files are right and a notice says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from starcoder.errors import FormatError
from starcoder.formats.hf.files import check_file, placeholder_at
from starcoder.formats.hf.folder import names_in, refuse_weights
from starcoder.formats.hf.names import listed
from starcoder.formats.hf.safetensors import Stored, read_safetensors
from starcoder.formats.hf.torch import read_torch
from starcoder.formats.io.json import load_json
from starcoder.formats.io.reject import reject

__all__ = ["read_weights"]

_MAX_INDEX = 1 << 20  # StarCoder's has 50 kB
_ABSENT = "no such file"
_MISSING = "download it, or the whole model again"


class _Kind(NamedTuple):
    """How files of one format are named and read."""

    stem: str
    suffix: str
    read: Callable[[Path], dict[str, Stored]]

    @property
    def index_name(self) -> str:
        """That of the index."""
        return f"{self.stem}{self.suffix}.index.json"


_KINDS = (
    _Kind("model", ".safetensors", read_safetensors),
    _Kind("pytorch_model", ".bin", read_torch),
)


class _Files(NamedTuple):
    """Files that are all there, and where an index says that tensors are."""

    names: list[str]
    placed: Mapping[str, str]
    note: str = ""


def read_weights(folder: Path, notices: list[str]) -> dict[str, Stored]:
    """All tensors of the folder by the names in its files; what was not believed is noted.

    Raises:
        FormatError: no weights, none that are whole, or files that contradict each other.
    """
    lacks: list[FormatError] = []
    for kind in _KINDS:
        found = _find(folder, kind)
        if isinstance(found, _Files):
            notices += [f"{_told(lack)}; {found.names[0]} is read instead" for lack in lacks]
            notices += [found.note] if found.note else []
            return _read(folder, kind, found, notices)
        lacks += [] if found is None else [found]
    if not lacks:
        refuse_weights(folder)
    raise _most_telling(folder, lacks)


def _told(lack: FormatError) -> str:
    return f"{Path(lack.where).name}: {lack.finding}"


def _most_telling(folder: Path, lacks: Sequence[FormatError]) -> FormatError:
    """Of all that is lacking, what is wrong with files of a kind that is there.

    A file that is not what its name says tells more than one that is not there.
    """
    names = names_in(folder)
    kinds = [
        kind.suffix
        for kind in _KINDS
        if any(name.startswith(kind.stem) and name.endswith(kind.suffix) for name in names)
    ]
    return max(lacks, key=lambda lack: (Path(lack.where).suffix in kinds, lack.found != _ABSENT))


# ------------------------------------------------------------------------------------------------
# What is there


def _find(folder: Path, kind: _Kind) -> _Files | FormatError | None:
    """The files of this kind; what they lack; or None where there are none.

    One whole file comes first, as in transformers; then what the index names; then shards whose
    own names tell that none is missing.
    """
    whole, index = folder / f"{kind.stem}{kind.suffix}", folder / kind.index_name
    series = _series(folder, kind)
    lack = None
    if os.path.lexists(whole):
        lack = _lack(whole, "weights")
        if lack is None:
            unused = f"{index.name} is not used: {whole.name} is there"
            return _Files([whole.name], {}, unused if os.path.exists(index) else "")
    if not os.path.exists(index):
        return _whole_series(folder, series) or lack or _gap(folder, series)
    try:
        placed = _placed(index, kind)
    except FormatError as error:
        unused = f"{_told(error)}; the index is not used"
        return _whole_series(folder, series, unused) or lack or _gap(folder, series) or error
    named = set(placed.values())
    what = f"a shard that {index.name} names"
    lacks = [found for name in sorted(named) if (found := _lack(folder / name, what))]
    if not lacks:
        same = (set(names) for names in series.values() if named & set(names))
        return _Files(sorted(named.union(*same)), placed)
    unused = f"{index.name} names files that are not there: it is not used"
    return _whole_series(folder, series, unused) or lack or _most_telling(folder, lacks)


def _series(folder: Path, kind: _Kind) -> dict[int, list[str]]:
    """The shards that are there by how many there should be."""
    pattern = re.compile(rf"{kind.stem}-(\d{{5}})-of-(\d{{5}}){re.escape(kind.suffix)}", re.ASCII)
    series: dict[int, list[str]] = {}
    for name in names_in(folder):
        match = pattern.fullmatch(name)
        if match is not None and 1 <= int(match[1]) <= int(match[2]):
            series.setdefault(int(match[2]), []).append(name)
    return series


def _whole_series(folder: Path, series: Mapping[int, list[str]], note: str = "") -> _Files | None:
    """Shards none of which is missing, which is known from their names."""
    whole = [
        names
        for count, names in series.items()
        if len(names) == count and not any(placeholder_at(folder / name) for name in names)
    ]
    if len(whole) > 1:
        found = f"shards of two sizes, {whole[0][0]} and {whole[1][0]}"
        reject(folder, "weights", found, "those of one model", "remove the older ones")
    return _Files(whole[0], {}, note) if whole else None


def _gap(folder: Path, series: Mapping[int, list[str]]) -> FormatError | None:
    """What shards without an index lack."""
    for count, names in series.items():
        for name in names:
            lack = _lack(folder / name, "weights")
            if lack is not None:
                return lack
        head, tail = names[0].split("-", 1)[0], names[0].split("-of-", 1)[1]
        wanted = (f"{head}-{i:05}-of-{tail}" for i in range(1, count + 1))
        missing = next(name for name in wanted if name not in set(names))
        expected = f"all {count} shards of the weights"
        return FormatError(str(folder / missing), _ABSENT, expected, _MISSING)
    return None


def _lack(path: Path, what: str) -> FormatError | None:
    """Why this file cannot be taken for what it is named; None if it can."""
    if not os.path.exists(path):
        return FormatError(str(path), _ABSENT, what, _MISSING)
    odd = placeholder_at(path)
    return None if odd is None else FormatError(str(path), odd[0], what, odd[1])


def _placed(index: Path, kind: _Kind) -> dict[str, str]:
    """Tensor name to file name, which must be a plain one in the same directory."""
    placed = load_json(check_file(index), _MAX_INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        reject(index, "weight_map", "no table", "tensor names and their files")
    for shard in placed.values():
        plain = isinstance(shard, str) and shard.endswith(kind.suffix)
        if not plain or not set(shard).isdisjoint("/\\:\0") or shard.startswith("."):
            reject(index, "weight_map", repr(shard)[:80], f"the plain name of a {kind.suffix} file")
    return placed


# ------------------------------------------------------------------------------------------------
# What is in it


def _read(folder: Path, kind: _Kind, files: _Files, notices: list[str]) -> dict[str, Stored]:
    """The tensors of all files. Where two have one of the same name, the index decides."""
    tensors: dict[str, Stored] = {}
    places: dict[str, str] = {}
    for file in files.names:
        for name, stored in kind.read(folder / file).items():
            place = files.placed.get(name)
            if name in tensors and place != file:
                if place != places[name]:
                    _check_same(folder / file, name, tensors[name], stored)
                continue
            tensors[name], places[name] = stored, file
    if files.placed:
        wrong = [n for n in files.placed.keys() | places if files.placed.get(n) != places.get(n)]
        if wrong:
            notices.append(f"{kind.index_name} is wrong about {listed(wrong)}: the files decide")
    return tensors


def _check_same(path: Path, name: str, before: Stored, after: Stored) -> None:
    if before[:2] != after[:2] or not np.array_equal(before.data, after.data):
        found = "other numbers than in another file"
        reject(path, f"tensor {name}", found, "each tensor once", "remove the older files")
