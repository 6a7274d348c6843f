"""MappedFile: a file as read-only memory, and whether it changed since it was mapped.

Pages are read from the disk when they are first looked at, so a large file costs nothing to open;
but a program that cuts it, or writes into it, changes what has yet to be read. Bytes that are gone
read as zeros (`csrc/sys/mapped_files.h`; the system would end the process), and `check` says what
happened.
What the bytes mean is for `formats`.
"""

from __future__ import annotations

import mmap
import os
from io import BufferedReader
from typing import NamedTuple

import numpy as np

from starcoder import _core
from starcoder.errors import FormatError

__all__ = ["MappedFile"]


class _State(NamedTuple):
    """Which file has a name, and when it last changed."""

    file: tuple[int, int]
    size: int
    written_ns: int


class MappedFile(mmap.mmap):
    """The bytes of an open file, which must not be empty.

    Raises:
        OSError: the system cannot map it.
    """

    name: str
    _path: str
    _state: _State
    _number: int

    def __new__(cls, file: BufferedReader) -> MappedFile:
        """Map the whole file; it may be closed afterwards."""
        self = super().__new__(cls, file.fileno(), 0, access=mmap.ACCESS_READ)
        self.name = os.fsdecode(file.name)
        self._path = _real(self.name)
        self._state = _state(os.fstat(file.fileno()))
        self._number = _core.watch_mapping(np.frombuffer(self, np.uint8))
        return self

    def check(self) -> None:
        """Make sure that all that was read so far is what the file held when it was mapped.

        A file that another one took the place of, by renaming, stays as it is for us.

        Raises:
            FormatError: it was cut or written into, or the disk could not read it.
        """
        if _core.lost_bytes(self._number) or self.size() != len(self) or self._was_written():
            found, expected = "a file that changed while it was read", "one that stays as it is"
            advice = "try again; to replace a model file, rename the new one"
            raise FormatError(self.name, found, expected, advice)

    def is_replaced(self) -> bool:
        """Whether its name leads to another file by now, or to none."""
        try:
            return _state(os.stat(self.name)).file != self._state.file
        except OSError:
            return True

    def _was_written(self) -> bool:
        try:
            now = _state(os.stat(self._path))
        except OSError:  # removed, or renamed: no program finds it to write into
            return False
        return now.file == self._state.file and now != self._state

    def __del__(self, unwatch=_core.unwatch_mapping) -> None:  # type: ignore[no-untyped-def]
        if hasattr(self, "_number"):
            unwatch(self._number)


def _state(stat: os.stat_result) -> _State:
    return _State((stat.st_dev, stat.st_ino), stat.st_size, stat.st_mtime_ns)


def _real(name: str) -> str:
    try:
        return os.path.realpath(name)
    except OSError:  # the working directory is gone
        return name
