"""Writing a file so that nothing is lost: whole under its name, or not there at all.

Bytes go to a temporary file in the same folder, are flushed to the disk, and take the target's name
by renaming. A kill at any moment leaves the old file or the new one, and two runs in one folder
never touch each other's. Writing has a thread of its own, so that the caller makes the next bytes
meanwhile; where no thread can be started, the caller waits instead. What the bytes mean is for the
formats, how temporary files are named and when they go for `io.temporary_files`.
"""

from __future__ import annotations

import errno
import os
import queue
import shutil
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import WriteError
from starcoder.formats.io import temporary_files

__all__ = ["Piece", "no_folder", "write_file"]

Piece = bytes | NDArray[np.uint8]

_QUEUE_LEN = 3  # pieces made and not yet written
# Writing to the disk is begun every so many bytes and waited for every so many, so that the last
# flush, and with it Ctrl-C, never waits for more.
_BEGIN_BYTES, _WAIT_BYTES = 16 << 20, 256 << 20
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def write_file(
    path: Path,
    nbytes: int,
    pieces: Iterable[Piece],
    on_bytes: Callable[[int], None] | None = None,
    mode: int = 0o666,
) -> None:
    """Make `path` a file of these pieces, `nbytes` in all. A symbolic link leads to the target.

    A new file has the permissions `mode`, less the user's mask; one that is replaced keeps its own.
    `on_bytes` is told, in the caller's thread, how many bytes each piece has. Whatever ends the
    iteration leaves the old file untouched and no temporary one.

    Raises:
        WriteError: no room, no permission, no such folder, a directory of that name.
    """
    target = path
    try:
        target = Path(os.path.realpath(path))
        _check_target(path, target, nbytes)
        fd, temporary = temporary_files.create(target, mode)
    except (OSError, ValueError) as error:
        raise _failure(path, target, nbytes, error) from None
    file = _File(fd, nbytes)
    writer: _Writer | _Direct = _Direct(file)
    try:
        writer = _start(file)
        for piece in pieces:
            writer.put(piece)
            if on_bytes is not None:
                on_bytes(len(piece))
        writer.finish()
        os.rename(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _failure(path, target, nbytes, error) from None
    finally:
        with suppress(OSError):  # renamed, mostly
            temporary.unlink()
        writer.abandon()
        file.release()  # and with it the lock, which no other run may have before the rename


# ------------------------------------------------------------------------------------------------
# Before


def _check_target(path: Path, target: Path, nbytes: int) -> None:
    """Ends what cannot succeed before any work is done."""
    with suppress(FileNotFoundError):  # no such file yet, or a link to none
        mode = os.stat(path).st_mode  # as /dev/stdout it may be no path at all that is written to
        if stat.S_ISDIR(mode):
            raise WriteError(str(path), "a directory", "the name of a file to write")
        if not stat.S_ISREG(mode):
            raise WriteError(str(path), "no regular file", "the name of a file to write")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        os.stat(target.parent)  # no such folder is another error
        advice = "choose another folder"
        raise WriteError(
            str(path), "a folder without permission to write", "a writable one", advice
        )
    temporary_files.remove_stale(target.parent)
    free = shutil.disk_usage(target.parent).free
    if free < nbytes:
        raise _no_room(path, f"{free:,} bytes free", nbytes)


# ------------------------------------------------------------------------------------------------
# During


class _File:
    """The temporary file: takes pieces in order, and is closed when its last holder is gone."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self._fd, self._nbytes = fd, nbytes
        self._n_holders, self._holders = 1, threading.Lock()
        self._done = self._begun = self._waited = 0  # bytes
        self.abandoned = False  # nothing more is written

    def write(self, piece: Piece) -> None:
        """Writes a piece, and now and then waits for the disk."""
        view = memoryview(piece)  # type: ignore[arg-type]  # arrays are buffers
        while view and not self.abandoned:
            view = view[os.write(self._fd, view) :]
        self._done += len(piece)
        if self._done - self._begun >= _BEGIN_BYTES:
            _begin_flush(self._fd, self._begun, self._done - self._begun)
            self._begun = self._done
        if self._done - self._waited >= _WAIT_BYTES:
            os.fsync(self._fd)
            self._waited = self._done

    def finish(self) -> None:
        """Waits until everything is on the disk."""
        if self.abandoned:
            return
        os.fsync(self._fd)
        if not self._done == os.fstat(self._fd).st_size == self._nbytes:
            raise OSError(None, f"{self._done} bytes written where {self._nbytes} were due")

    def hold(self) -> None:
        """Somebody else uses it too."""
        with self._holders:
            self._n_holders += 1

    def release(self) -> None:
        """Whoever holds it needs it no more."""
        with self._holders:
            self._n_holders -= 1
            if self._n_holders == 0:
                os.close(self._fd)


class _Direct:
    """Writes pieces when they come."""

    def __init__(self, file: _File) -> None:
        self._file = file

    def put(self, piece: Piece) -> None:
        """Returns when the piece is written."""
        self._file.write(piece)

    def finish(self) -> None:
        """Waits until everything is on the disk."""
        self._file.finish()

    def abandon(self) -> None:
        """There is nothing to stop."""


class _Writer:
    """A thread that writes pieces in order, and holds the file while it runs.

    Raises:
        RuntimeError: no thread can be started.
    """

    def __init__(self, file: _File) -> None:
        self._file = file
        self._queue: queue.Queue[Piece | None] = queue.Queue(_QUEUE_LEN)
        self._error: OSError | None = None
        self._ended = False  # told by the last piece
        # A daemon, so that an interrupt never waits for a slow disk.
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        file.hold()
        try:
            self._thread.start()
        except RuntimeError:
            file.release()
            raise

    def put(self, piece: Piece) -> None:
        """Hands a piece over; waits while too many are not yet written."""
        self._queue.put(piece)
        self._check()

    def finish(self) -> None:
        """Waits until everything is on the disk."""
        self._queue.put(None)
        self._thread.join()
        self._check()

    def abandon(self) -> None:
        """Stops the thread soon; nothing more is written."""
        self._file.abandoned = True
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (piece := self._next()) is not None:
                self._file.write(piece)
            self._file.finish()
        except OSError as error:
            self._error = error
            while self._next() is not None:  # so that no `put` waits for ever
                pass
        finally:
            self._file.release()

    def _next(self) -> Piece | None:
        """The next piece; None, and from then on, after the last or when all is in vain."""
        if self._ended or self._file.abandoned:
            return None
        piece = self._queue.get()
        self._ended = piece is None
        return piece


def _start(file: _File) -> _Writer | _Direct:
    """A writer with a thread, or without one where none can be started: containers limit them."""
    try:
        return _Writer(file)
    except RuntimeError:
        return _Direct(file)


def _begin_flush(fd: int, start: int, length: int) -> None:
    """Has the system write these bytes to the disk, without waiting."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, start, length, os.POSIX_FADV_DONTNEED)


# ------------------------------------------------------------------------------------------------
# After


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk. The file is whole either way, so failing is no error."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _failure(path: Path, target: Path, nbytes: int, error: OSError | ValueError) -> WriteError:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    if getattr(error, "errno", None) in _NO_ROOM:
        free = None
        with suppress(OSError):
            free = shutil.disk_usage(target.parent).free
        return _no_room(path, reason if free is None else f"{reason}, {free:,} bytes free", nbytes)
    if isinstance(error, FileNotFoundError) and not os.path.exists(target.parent):
        return no_folder(path)
    return WriteError(str(path), reason, "a file that can be written", "check path and permissions")


def no_folder(path: Path) -> WriteError:
    """What to say of a file whose folder is not there."""
    is_link = os.path.exists(path.parent)
    found = "a link into no folder" if is_link else f"no folder {path.parent}"
    return WriteError(str(path), found, "one that exists", "make it first")


def _no_room(path: Path, found: str, nbytes: int) -> WriteError:
    advice = "free some space or choose another folder"
    return WriteError(str(path), found, f"room for {nbytes:,} bytes", advice)
