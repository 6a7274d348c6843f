"""Writing several files that are one model: all of them under their names, or none that opens.

The parts are written into a temporary folder beside their target, whole and flushed, and then
renamed. No set of files can be renamed at once: the old parts go aside first, beginning with the
first, without which the others are no model, and the new first part comes last. Whatever fails
brings the old parts back. A kill in that very moment leaves a set without its first part, which is
refused, and the old parts in a folder whose name ends in `_AS_OLD`, until the set is written anew.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from starcoder.errors import WriteError
from starcoder.formats.io import temporary_files
from starcoder.formats.io.atomic import Piece, no_folder, write_file

__all__ = ["File", "write_parts"]

_AS_OLD = "-old"  # behind the name of the temporary folder


class File(NamedTuple):
    """A file that is to be: `nbytes` bytes in all."""

    path: Path
    nbytes: int
    pieces: Iterator[Piece]


def write_parts(files: Sequence[File], on_bytes: Callable[[int], None] | None = None) -> None:
    """Make these files; `on_bytes` is told how many bytes each piece has.

    Raises:
        WriteError: no room for all, no permission, no such folder, a directory of such a name.
    """
    target = Path(os.path.realpath(files[0].path.parent))
    try:
        _check(files, target)
        with _temporary_folder(target / files[0].path.name) as folder:
            for file in files:
                _write(folder / file.path.name, file, on_bytes)
            with _locked(target):
                _exchange([file.path.name for file in files], folder, target)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not target.exists():
            raise no_folder(files[0].path) from None
        reason = (error.strerror or str(error)).lower()
        advice = "check path and permissions"
        where = str(files[0].path)
        raise WriteError(where, reason, "files that can be written", advice) from None


def _write(path: Path, file: File, on_bytes: Callable[[int], None] | None) -> None:
    """Write a part under another name than it shall have; errors name the part."""
    try:
        write_file(path, file.nbytes, file.pieces, on_bytes)
    except WriteError as error:
        where = str(file.path)
        raise WriteError(where, error.found, error.expected, error.advice) from None


def _exchange(names: Sequence[str], folder: Path, target: Path) -> None:
    """Move the files of these names from `folder` to `target`, or leave `target` as it was."""
    aside = folder.with_name(folder.name + _AS_OLD)
    aside.mkdir(mode=0o700)
    try:
        for name in names:
            with suppress(FileNotFoundError):  # there is no old part of this name
                mode = os.stat(target / name).st_mode
                os.chmod(folder / name, stat.S_IMODE(mode))
                os.rename(target / name, aside / name)
        for name in reversed(names):
            os.rename(folder / name, target / name)
    except BaseException:  # Ctrl-C too
        for name in reversed(names):
            if (aside / name).exists():
                os.replace(aside / name, target / name)
            elif not (folder / name).exists():
                (target / name).unlink(missing_ok=True)  # a new part that replaced none
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)
    temporary_files.remove_stale(target, f".{names[0]}.", _AS_OLD)  # of runs that were killed here


def _check(files: Sequence[File], target: Path) -> None:
    """Ends what cannot succeed before any work is done."""
    for file in files:
        place = target / file.path.name
        if place.exists() and not place.is_file():
            raise WriteError(str(file.path), "no regular file", "the name of a file to write")
    free, nbytes = shutil.disk_usage(target).free, sum(file.nbytes for file in files)
    if free < nbytes:
        advice = "free some space or choose another folder"
        found, expected = f"{free:,} bytes free", f"room for {nbytes:,} bytes in all parts"
        raise WriteError(str(files[0].path), found, expected, advice)


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target; it is gone at the end, come what may."""
    temporary_files.remove_stale(target.parent)
    fd, folder = temporary_files.create_folder(target)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps another run from renaming parts of the same names; then the names go to the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        with suppress(OSError):  # every file is whole either way
            os.fsync(fd)
    finally:
        os.close(fd)
