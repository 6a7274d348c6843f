"""The files of one model in the cache of huggingface_hub, which other programs share.

    blobs/<hash>    snapshots/<commit>/<name> -> blobs/<hash>    refs/<revision>: a commit

Files that other programs put there are used too: a link or the file itself in its place, with or
without a reference. What cannot be written is no error where the model is whole; bytes are for
`_download`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from starcoder.hub import _library
from starcoder.hub._choice import UnfitError, choose
from starcoder.hub._library import UNKNOWN, HubError
from starcoder.hub._names import Name, shown

__all__ = ["HASH", "Copy", "File", "find", "folder_of", "has", "link", "note"]

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAIN = (None, "main")
_MAX_NAMES = 4  # in a message


class File(NamedTuple):
    """One file of a model. Its `hash` names it in the cache: SHA-256 of the bytes, or git's id."""

    name: str
    size: int
    hash: str


class Copy(NamedTuple):
    """A whole model in the cache: what to open, and the commit that it is of."""

    path: Path
    commit: str
    is_noted: bool = True  # the cache says that this is the revision


def folder_of(repo: str) -> Path:
    """Where the cache has everything of this model."""
    return _library.cache_folder() / f"models--{repo.replace('/', '--')}"


# ------------------------------------------------------------------------------------------------
# What is there


def find(name: Name) -> Copy:
    """The model as it was downloaded before: of its revision, or else the newest of main.

    Raises:
        HubError: there is no whole one; `found` says what there is. Its cause is UNKNOWN where
            that is of other revisions only.
        UnfitError: there are several.
    """
    folder, lack = folder_of(name.repo), ""
    for place, is_noted in _snapshots(folder, name):
        try:
            entry = choose(_files(place), name.wanted).entry
        except HubError as error:
            if isinstance(error, UnfitError) and name.wanted is None:
                raise  # several files fit
            lack = lack or _lack(place, error)
        else:
            return Copy(place / entry if entry else place, place.name, is_noted)
    if not lack and (others := _revisions(folder)):
        listed = f"{'a copy' if len(others) == 1 else 'copies'} of {_joined(others)}"
        found = f"{listed} in the cache, but none of {name.revision or 'main'}"
        raise HubError(found, cause=UNKNOWN)
    raise HubError(lack)


def _snapshots(folder: Path, name: Name) -> Iterator[tuple[Path, bool]]:
    """Where a revision may be, and whether the cache says so; the likeliest first."""
    noted = _commit(folder / "refs" / (name.revision or "main"))
    if noted is None and name.revision is not None and HASH.fullmatch(name.revision):
        noted = name.revision
    if noted is not None:
        yield folder / "snapshots" / noted, True
    if other := _by_library(name):
        yield other, True
    if name.revision in _MAIN:
        for place in _by_age(folder / "snapshots"):
            yield place, False


def _by_library(name: Name) -> Path | None:
    """Where the library has a revision: it knows the layouts of other versions."""
    try:
        # From its module: the package prints what keeps it from loading one.
        from huggingface_hub.hf_api import HfApi

        where = _library.cache_folder()
        path = HfApi().snapshot_download(
            name.repo, revision=name.revision, cache_dir=where, local_files_only=True
        )
        return Path(path)
    except Exception:
        return None


def _commit(ref: Path) -> str | None:
    """The commit that a reference names; None: there is none, or a damaged one."""
    with suppress(OSError, ValueError):
        text = ref.read_text(encoding="ascii").strip()
        if HASH.fullmatch(text):
            return text
    return None


def _by_age(snapshots: Path) -> list[Path]:
    """All snapshots, the newest first."""
    with suppress(OSError):
        places = [place for place in snapshots.iterdir() if HASH.fullmatch(place.name)]
        return sorted(places, key=lambda place: -place.stat().st_mtime)
    return []


def _files(snapshot: Path) -> set[str]:
    """Names of the files that are there; links must lead to one that is not empty."""
    names = set()
    for folder, _, files in os.walk(snapshot):
        for path in (Path(folder, file) for file in files):
            with suppress(OSError):
                if path.stat().st_size:
                    names.add(path.relative_to(snapshot).as_posix())
    return names


def _lack(snapshot: Path, error: HubError) -> str:
    """Which files of a model are there, and which are missing; empty if none is there."""
    names = sorted(shown(name) for name in _files(snapshot))
    return f"{_joined(names)} in the cache, but {error.found}" if names else ""


def _revisions(folder: Path) -> list[str]:
    """The revisions of which there is anything, by their names or else by their commits."""
    named: dict[str, list[str]] = {}
    for ref in sorted((folder / "refs").rglob("*")):
        if commit := _commit(ref):
            named.setdefault(commit, []).append(ref.relative_to(folder / "refs").as_posix())
    places = [place for place in _by_age(folder / "snapshots") if _files(place)]
    return [shown(name) for p in places for name in named.get(p.name, [f"commit {p.name[:12]}"])]


def _joined(names: list[str]) -> str:
    more = [f"{len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    *most, last = names[:_MAX_NAMES] + more
    return f"{', '.join(most)} and {last}" if most else last


def has(folder: Path, commit: str, file: File) -> bool:
    """Whether a file is there, of the size that the Hub states."""
    places = (folder / "blobs" / file.hash, folder / "snapshots" / commit / file.name)
    return any(_size(place) == file.size for place in places)


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None


# ------------------------------------------------------------------------------------------------
# What is written


def link(folder: Path, commit: str, files: list[File]) -> Path:
    """The snapshot of a commit, with these files, all of which are there.

    Raises:
        OSError: it cannot be written, and no other snapshot has the same files.
    """
    snapshot = folder / "snapshots" / commit
    try:
        for file in files:
            if _size(snapshot / file.name) != file.size:
                _link(folder / "blobs" / file.hash, snapshot / file.name)
    except OSError:
        for other in _by_age(folder / "snapshots"):
            if all(_is_link_to(other / file.name, file) for file in files):
                return other
        raise
    return snapshot


def _link(blob: Path, place: Path) -> None:
    """A link to a blob; on a file system without links, the file itself."""
    place.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(blob, place.parent)
    try:
        _put(place, lambda new: new.symlink_to(target))
    except OSError:
        try:
            _put(place, lambda new: os.link(blob, new))
        except OSError:
            os.replace(blob, place)


def _is_link_to(place: Path, file: File) -> bool:
    return os.path.basename(os.path.realpath(place)) == file.hash and _size(place) == file.size


def note(folder: Path, name: Name, commit: str) -> None:
    """Keep which commit a revision is. Only a later run without a network needs it."""
    ref = folder / "refs" / (name.revision or "main")
    if _commit(ref) != commit and name.revision != commit:
        with suppress(OSError):
            ref.parent.mkdir(parents=True, exist_ok=True)
            _put(ref, lambda new: new.write_text(commit))


def _put(place: Path, make: Callable[[Path], object]) -> None:
    """Make a file under another name and rename it: it is whole, and the first of many wins."""
    new = place.with_name(f".{secrets.token_hex(8)}.starcoder-tmp")
    try:
        make(new)
        os.replace(new, place)
    finally:
        new.unlink(missing_ok=True)
