"""Who downloads a file, where several processes want it: the first, and the others wait.

A file comes under a name of its own for each process, `blobs/<hash>.<claim>.partial`; a claim says
when it was made, on which machine and by which process. What one that broke off has left is
`blobs/<hash>.partial`, and is taken over by renaming, which only one can do.

Nothing here needs locks, which file systems of networks and containers often lack: a claim counts
while its process lives and gives signs of it. Where that is misjudged, two write the same bytes
to the same places, and the one that lost its file finds out with its next sign.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from starcoder.hub import _library

__all__ = ["Claim", "LostError", "Queue"]

_CLAIM = re.compile(r"[0-9a-f]{16}-(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,9})-[0-9a-f]{8}")
_BEAT = 1.0  # seconds between signs of life
_PATIENCE = 20.0  # seconds without one until a process counts as gone; two time-outs come on top
_OLD = 600.0  # seconds after which waiting has no point; clocks of machines differ by less


class LostError(Exception):
    """Another process took the file over, for this one seemed to have ended."""


class Claim:
    """A partial file that is ours to write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """A sign of life, to be given often: after every piece, before every wait.

        Raises:
            LostError: the claim is no longer ours.
        """
        if time.monotonic() - self._beaten >= _BEAT:
            self.hold()

    def hold(self) -> None:
        """The same at once: before anything that would harm another's file.

        Raises:
            LostError: the claim is no longer ours.
        """
        self._beaten = time.monotonic()
        try:
            os.utime(self.path)
        except FileNotFoundError:
            raise LostError from None
        except OSError:
            return  # a file system without times: the growing size is a sign too


class Queue:
    """The processes that work at one file of the cache, as one of them sees it."""

    def __init__(self, blobs: Path, name: str) -> None:
        self._blobs, self._name = blobs, name
        self._signs: dict[str, tuple[tuple[int, int], float]] = {}  # the last, and since when

    def take(self) -> Claim | None:
        """The file as far as it has come, to go on with; None: it is another's turn.

        Raises:
            OSError: nothing can be written there.
        """
        left, living = self._look()
        if living:
            return None
        claim = f"{time.time_ns():016x}-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
        mine = self._blobs / f"{self._name}.{claim}.partial"
        for path in left:
            with suppress(FileNotFoundError):  # another was faster
                os.utime(path)  # so that no other process takes it for old
                os.rename(path, mine)
                break
        else:
            os.close(os.open(mine, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        if any(other.name < mine.name for other in self._look()[1]):
            self.give_back(Claim(mine))  # both began at once, and the other was first
            return None
        return Claim(mine)

    def give_back(self, claim: Claim) -> None:
        """Leave the bytes that came to the next process, unless there are more already."""
        left = self._blobs / f"{self._name}.partial"
        with suppress(OSError):  # the claim is gone, if the file is whole or lost
            if _size(claim.path) > _size(left):
                os.replace(claim.path, left)
            else:
                claim.path.unlink()

    def clear(self) -> None:
        """Remove what is left of a file that is whole now."""
        for path in self._look()[0]:
            with suppress(OSError):
                path.unlink()

    def n_bytes(self) -> int:
        """How much of the file has come, to us or to others."""
        left, living = self._look()
        return max(map(_size, left + living), default=0)

    def _look(self) -> tuple[list[Path], list[Path]]:
        """Parts that ended processes have left, the longest first; and parts that others write."""
        left: list[Path] = []
        living: list[Path] = []
        for entry in os.listdir(self._blobs):
            if entry.startswith(f"{self._name}.") and entry.endswith(".partial"):
                path = self._blobs / entry
                (living if self._is_living(path) else left).append(path)
        return sorted(left, key=_size, reverse=True), living

    def _is_living(self, path: Path) -> bool:
        owner = path.name[len(self._name) : -len(".partial")].strip(".")
        if not owner:
            return False
        claim = _CLAIM.fullmatch(owner)
        if claim and claim["machine"] == _machine() and not _runs(int(claim["pid"])):
            return False
        try:
            status = path.stat()
        except OSError:
            return False
        sign, now = (status.st_size, status.st_mtime_ns), time.monotonic()
        last, since = self._signs.get(path.name, (None, now))
        if last != sign:
            self._signs[path.name] = sign, (since := now)
        is_old = abs(time.time() - status.st_mtime) > _OLD
        return not is_old and now - since < _PATIENCE + 2 * _library.timeout()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@lru_cache(maxsize=1)
def _machine() -> str:
    """Where process ids mean the same: this machine since it was started, or this container."""
    words = [platform.node()]
    for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with suppress(OSError):
            words.append(Path(path).read_text())
    with suppress(OSError):
        words.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]
