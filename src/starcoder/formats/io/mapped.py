"""Files as readers see them: mapped into memory, with a cursor that never leaves them.

Numbers from a file are compared with the bytes that are left before anything is made of them, so
no size that a file claims is ever allocated.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from starcoder.core.mapped_file import MappedFile
from starcoder.errors import FormatError, MemoryLimitError
from starcoder.formats.io.reject import DAMAGED, reject

__all__ = ["Cursor", "map_file"]


def map_file(path: Path) -> MappedFile:
    """The file as read-only memory, which lives as long as a view of it.

    Raises:
        FormatError: no such file, no permission, an empty file, a device or a pipe.
        MemoryLimitError: the address space has no room for it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FormatError(str(path), "no regular file", "a model file or directory")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FormatError(str(path), "an empty file", "a model", DAMAGED)
            return MappedFile(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        advice = "check the path and its permissions"
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            advice = "allow more with ulimit -n, or join the parts of the model into one file"
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise MemoryLimitError(str(path), reason.lower(), "room to map it", "") from None
        raise FormatError(str(path), reason.lower(), "a model file", advice) from None


@dataclass(slots=True)
class Cursor:
    """A place in a mapped file. It moves forward only, and never past the end.

    Every method raises FormatError where the file holds less than is asked for.
    """

    name: str  # of the file, for messages
    data: MappedFile
    pos: int = 0

    @property
    def left(self) -> int:
        """Bytes from here to the end."""
        return len(self.data) - self.pos

    def fail(self, what: str, found: str, expected: str, advice: str = "") -> NoReturn:
        """End reading with an error that names the file."""
        reject(Path(self.name), what, found, expected, advice)

    def skip(self, n: int, what: str) -> int:
        """Step over `n` bytes; returns where they start."""
        start = self.pos
        if n > self.left:
            self.fail(what, f"only {self.left} bytes left in the file", f"{n} bytes", DAMAGED)
        self.pos = start + n
        return start

    def unpack(self, fields: struct.Struct, what: str) -> tuple[Any, ...]:
        """Numbers as `fields` describes them."""
        return fields.unpack_from(self.data, self.skip(fields.size, what))

    def take(self, n: int, limit: int, what: str) -> bytes:
        """A copy of `n` bytes, of which there may be `limit` at most."""
        if n > limit:
            self.fail(what, f"a length of {n} bytes", f"at most {limit}", DAMAGED)
        start = self.skip(n, what)
        return self.data[start : start + n]

    def text(self, n: int, limit: int, what: str, errors: str = "strict") -> str:
        """`n` bytes of UTF-8 as text; `errors` as in `bytes.decode`."""
        raw = self.take(n, limit, what)
        try:
            return raw.decode(errors=errors)
        except UnicodeDecodeError:
            self.fail(what, f"the bytes {raw[:16]!r}", "UTF-8 text", DAMAGED)

    def view(self, n: int, what: str) -> NDArray[np.uint8]:
        """`n` bytes of the mapping itself, not a copy."""
        start = self.skip(n, what)
        return np.frombuffer(self.data, np.uint8, n, start)
