"""Temporary files and folders: under which names bytes are written, and when leftovers may go.

A name says which process on which machine writes it, so that a run is known to be gone even where
locks fail or do nothing. What is written, and what becomes of it, `io.atomic` and
`io.atomic_parts` know.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["create", "create_folder", "remove_stale"]

_SUFFIX = ".starcoder-tmp"
_NAME = re.compile(
    r"\..*\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{8}" + re.escape(_SUFFIX) + "(-[a-z]+)?", re.DOTALL
)
_MAX_STEM = 160  # bytes of the target's name: with what is added, a name may have 255
_FORSAKEN = 24 * 3600.0  # seconds without a byte: a writer that cannot be asked is gone


def create(target: Path, mode: int) -> tuple[int, Path]:
    """A new temporary file beside the target, locked, with the target's permissions.

    Where there is no target they are `mode`, less the user's mask. The lock lasts until the
    descriptor is closed.

    Raises:
        OSError: no room, no permission.
    """
    while True:
        temporary = _new_name(target)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        if _lock(fd) and os.fstat(fd).st_nlink:
            with suppress(OSError):
                os.fchmod(fd, stat.S_IMODE(os.stat(target).st_mode))
            return fd, temporary
        # Another run took it for a leftover before it was locked: begin anew.
        os.close(fd)
        with suppress(OSError):
            temporary.unlink()


def create_folder(target: Path) -> tuple[int, Path]:
    """A new temporary folder beside the target, locked until the descriptor is closed.

    Raises:
        OSError: no room, no permission.
    """
    while True:
        temporary = _new_name(target)
        temporary.mkdir(mode=0o700)  # what is written may be private
        with suppress(FileNotFoundError):  # another run took it for a leftover
            fd = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            if _lock(fd) and temporary.is_dir():
                return fd, temporary
            os.close(fd)


def remove_stale(folder: Path, start: str = "", more: str = "") -> None:
    """Remove temporary files and folders whose writers are gone.

    Args:
        folder: where to look.
        start: how the names begin.
        more: what stands behind the ending of temporary names.
    """
    for name in os.listdir(folder):
        if name.startswith(start) and name.endswith(_SUFFIX + more):
            with suppress(OSError):
                _remove_if_stale(folder / name)


def _remove_if_stale(path: Path) -> None:
    if not _is_forsaken(path):
        return
    is_folder = stat.S_ISDIR(path.lstat().st_mode)
    access = os.O_RDONLY if is_folder else os.O_RDWR
    fd = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if _lock(fd):
            shutil.rmtree(path, ignore_errors=True) if is_folder else path.unlink()
    finally:
        os.close(fd)


def _new_name(target: Path) -> Path:
    stem = os.fsencode(target.name)[:_MAX_STEM].decode(errors="ignore")
    tag = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return target.with_name(f".{stem}.{tag}{_SUFFIX}")


def _is_forsaken(path: Path) -> bool:
    """Whether its writer is gone: known of this machine; of another, by the age of the file."""
    match = _NAME.fullmatch(path.name)
    if match is not None and match[1] == _machine():
        return not _is_running(int(match[2]))
    return time.time() - path.lstat().st_mtime > _FORSAKEN


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _lock(fd: int) -> bool:
    """Take the lock of an open file; False: another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: names alone have to do
        return True
    return True


def _machine() -> str:
    """What tells apart places whose process numbers mean nothing to each other.

    Linux names every boot, and every container's own numbers; elsewhere there is the host's name.
    """
    marks = [os.uname().nodename]
    with suppress(OSError):
        marks.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        marks.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()[:8]
