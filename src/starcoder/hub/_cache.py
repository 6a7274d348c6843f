"""The files of one model in the cache of huggingface_hub, which other programs share.

    blobs/<hash>    snapshots/<commit>/<name> -> blobs/<hash>    refs/<revision>: a commit

The library checks sizes only, and since version 2 throws half a file away when its process ends.
So a file comes under `blobs/<hash>.partial`, goes on from there the next time, and gets its name
when its SHA-256 (or git's SHA-1, for small files) is the one that the Hub states. A revision is
noted when all its files are there: what the cache names is whole, and serves without a network.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from starcoder.errors import InputError

__all__ = ["HASH", "File", "Progress", "cached", "check_room", "fetch", "link", "note"]

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHUNK = 1 << 20


class Progress(Protocol):
    """Who wants to know how far a download is."""

    def start(self, total: int) -> None:
        """So many bytes will come."""

    def advance(self, n: int) -> None:
        """So many more have come."""


class File(NamedTuple):
    """One file of a model. Its `hash` names it in the cache: SHA-256 of the bytes, or git's id."""

    name: str
    size: int
    hash: str


def cached(folder: Path, revision: str) -> Path | None:
    """The snapshot of a revision that was downloaded before, if any."""
    named = folder / "refs" / revision
    commit = named.read_text() if named.is_file() else revision
    path = folder / "snapshots" / commit
    return path if HASH.fullmatch(commit) and (path / "config.json").exists() else None


def check_room(repo: str, folder: Path, files: list[File]) -> int:
    """Bytes that have yet to come, for which there must be room."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    partial = [blobs / f"{file.hash}.partial" for file in files]
    needed = sum(f.size for f in files) - sum(p.stat().st_size for p in partial if p.exists())
    free = shutil.disk_usage(blobs).free
    if needed > free:
        found, advice = (
            f"{free / 1e9:.1f} GB free at {blobs}",
            "free some, or set HF_HOME elsewhere",
        )
        raise InputError(repo, found, f"{needed / 1e9:.1f} GB for the download", advice)
    return needed


def fetch(repo: str, commit: str, blobs: Path, file: File, progress: Progress | None) -> None:
    """Download one file from where an earlier try broke off, check it and name it."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    partial = blobs / f"{file.hash}.partial"
    with partial.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # another process may be at it: wait, then look
        if (blobs / file.hash).exists():
            return
        done = out.seek(0, os.SEEK_END)
        if done > file.size:
            done = out.truncate(0)
        http_get(
            hf_hub_url(repo, file.name, revision=commit),
            out,
            resume_size=done,
            headers=build_hf_headers(),
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=None if progress is None else _bar(progress),
        )
        out.flush()
        os.fsync(out.fileno())
        if _hash(partial, file) != file.hash:
            partial.unlink()
            found, expected = "bytes of another hash", f"{file.hash[:12]}..., as the Hub states"
            raise InputError(f"{repo}: {file.name}", found, expected, "try again")
        partial.rename(blobs / file.hash)


def _bar(progress: Progress) -> Any:
    """What the library takes for a class of progress bars."""

    class Bar:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

    return Bar


def _hash(path: Path, file: File) -> str:
    """SHA-256 of the bytes, or what git calls them, whichever the Hub gave."""
    digest = hashlib.sha256()
    if len(file.hash) == 40:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as data:
        while chunk := data.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def link(folder: Path, commit: str, files: list[File]) -> Path:
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in files:
        place = snapshot / file.name
        if not place.exists():
            place.unlink(missing_ok=True)  # one that leads nowhere
            place.symlink_to(Path("../../blobs", file.hash))
    return snapshot


def note(ref: Path, commit: str) -> None:
    ref.parent.mkdir(parents=True, exist_ok=True)
    if not ref.exists() or ref.read_text() != commit:
        ref.write_text(commit)
