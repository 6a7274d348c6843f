"""The bytes of a model's files: resumed where they broke off, counted, checked, then named.

The library's own downloads differ between its versions, and some throw half a file away when the
process ends. Here a file that breaks off goes on from there, now or in the next run; one that is
longer than the Hub states ends at once; and it gets its name in the cache when its SHA-256 (or
git's SHA-1, for small files) is the one that the Hub states. `_claim` has
which process writes, and when.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from starcoder.hub import _library
from starcoder.hub._cache import File
from starcoder.hub._claim import Claim, LostError, Queue
from starcoder.hub._library import HubError
from starcoder.hub._progress import Progress

__all__ = ["fetch_all"]

_log = logging.getLogger("starcoder")

_CHUNK = 1 << 20
_MOST = 20_000_000_000  # bytes of one request: servers refuse to send 50 GB in one answer
_TRIES = 5  # in a row that bring nothing
_PAUSE = 1.0  # seconds between two
_POLL = 0.2  # seconds between looks at what another process does
_SAY = 2.0  # seconds until the user is told of it


def fetch_all(
    repo: str,
    commit: str,
    blobs: Path,
    files: list[File],
    progress: Progress | None,
    before: Callable[[File], None],
) -> None:
    """Bring these files into the cache, one after the other; `before` each there may be a check.

    Raises:
        HubError: no room, no answer, or other bytes than the Hub states.
        OSError: nothing can be written there.
    """
    blobs.mkdir(parents=True, exist_ok=True)
    total = _check_room(blobs, files)
    with _Bar() if progress is None else nullcontext(progress) as shown:
        shown.start(total)
        for file in files:
            before(file)
            _Fetch(repo, commit, blobs, file, shown).run()


def _check_room(blobs: Path, files: list[File]) -> int:
    """Bytes that have yet to come, for which there must be room."""
    needed = sum(file.size - min(Queue(blobs, file.hash).n_bytes(), file.size) for file in files)
    free = shutil.disk_usage(blobs).free
    if needed > free:
        found, advice = f"{_gb(free)} free at {blobs}", "free some, or set HF_HOME elsewhere"
        raise HubError(found, f"{_gb(needed)} for the download", advice)
    return needed


def _gb(n: int) -> str:
    return f"{n / 1e9:.1f} GB"


class _Fetch:
    """One file on its way."""

    def __init__(self, repo: str, commit: str, blobs: Path, file: File, progress: Progress) -> None:
        self._repo, self._commit, self._file, self._progress = repo, commit, file, progress
        self._blob = blobs / file.hash
        self._queue = Queue(blobs, file.hash)
        self._told = min(self._queue.n_bytes(), file.size)  # bytes that progress knows of

    def run(self) -> None:
        """Returns when the file is there, from this process or another."""
        asked, said = time.monotonic(), False
        while not self._is_there():
            claim = self._queue.take()
            if claim is not None:
                try:
                    self._complete(claim)
                except LostError:
                    pass  # to another, which is at it now
                finally:
                    self._queue.give_back(claim)
                continue
            if not said and time.monotonic() - asked > _SAY:
                said = True
                what = f"{self._repo}: {self._file.name}"
                _log.warning("%s: waiting for another process that downloads it", what)
            self._tell(self._queue.n_bytes())
            time.sleep(_POLL)
        self._queue.clear()
        self._tell(self._file.size)

    def _is_there(self) -> bool:
        try:
            return self._blob.stat().st_size == self._file.size
        except FileNotFoundError:
            return False

    def _tell(self, done: int) -> None:
        """Never less than before, though a file may begin anew."""
        done = min(done, self._file.size)
        if done > self._told:
            self._progress.advance(done - self._told)
            self._told = done

    def _complete(self, claim: Claim) -> None:
        with claim.path.open("r+b") as out:
            resumed = self._receive(claim, out)
            is_right = self._is_right(claim, out)
            if resumed and not is_right:  # what was left were other bytes
                _empty(claim, out)
                self._receive(claim, out)
                is_right = self._is_right(claim, out)
            if not is_right:
                _empty(claim, out)
                found = f"bytes of another hash in {self._file.name}"
                raise HubError(found, f"{self._file.hash[:12]}..., as the Hub states", "try again")
            os.fsync(out.fileno())
            try:
                os.replace(claim.path, self._blob)
            except FileNotFoundError:
                raise LostError from None

    def _receive(self, claim: Claim, out: BinaryIO) -> bool:
        """Bring the rest of a file; says whether a part of it was there."""
        size, tries = self._file.size, 0
        done = out.seek(0, os.SEEK_END)
        if done > size:
            done = _empty(claim, out)
        resumed, most = done > 0, done
        while done < size:
            claim.beat()
            try:
                done = self._receive_some(claim, out, done)
            except HubError as error:
                done = out.tell()
                tries = 0 if done > most else tries + 1
                if not error.again or tries == _TRIES:
                    error.found += f", for {self._file.name}"
                    error.advice += "; it resumes" if error.again else ""
                    error.cause = ""  # the Hub has the model
                    raise
                time.sleep(_PAUSE)
            most = max(most, done)
        return resumed

    def _receive_some(self, claim: Claim, out: BinaryIO, done: int) -> int:
        """Ask once, and write what comes to where it belongs."""
        size, name = self._file.size, self._file.name
        stop = min(done + _MOST, size)
        part = (done, stop) if stop - done < size else None
        with _library.open_file(self._repo, self._commit, name, part) as body:
            if body.is_part:
                limit = stop
            else:
                done, limit = 0, size
            out.seek(done)
            for chunk in body.chunks:
                done += len(chunk)
                if done > limit:
                    _empty(claim, out)
                    found = f"more than the {size:,} bytes that the Hub states"
                    raise HubError(found, "the file", "check the proxy, and try again")
                out.write(chunk)
                claim.beat()
                self._tell(done)
        if done < limit:
            raise HubError(f"{done:,} of {size:,} bytes", "all", "try again", again=True)
        return done

    def _is_right(self, claim: Claim, out: BinaryIO) -> bool:
        """Whether SHA-256 of the bytes, or what git calls them, is what the Hub states."""
        digest = hashlib.sha256()
        if len(self._file.hash) == 40:
            digest = hashlib.sha1(b"blob %d\0" % self._file.size, usedforsecurity=False)
        out.seek(0)
        while chunk := out.read(_CHUNK):
            digest.update(chunk)
            claim.beat()
        return digest.hexdigest() == self._file.hash


def _empty(claim: Claim, out: BinaryIO) -> int:
    """Begin anew, unless another process goes on with what there is."""
    claim.hold()
    out.truncate(0)
    return out.seek(0)


class _Bar:
    """A bar on a terminal, where the caller brought nothing else to show progress."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, total: int) -> None:
        from huggingface_hub import utils

        bar: Any = utils.tqdm  # type: ignore[attr-defined]
        self._bar = bar(total=total, desc="download", unit="B", unit_scale=True, disable=None)

    def advance(self, n: int) -> None:
        self._bar.update(n)
