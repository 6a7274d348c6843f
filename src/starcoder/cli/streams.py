"""The streams of the command line: UTF-8 in every locale, and no error where the reader is gone."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO, cast

__all__ = ["Notes", "forget_output", "open_streams"]


class Notes:
    """stderr, on a full disk too: what cannot be written there ends no work.

    A reader that went away is still an error, as on stdout.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_lost = False  # something could not be written

    def write(self, text: str) -> int:
        """Write what can be written."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            raise
        except OSError:
            self.is_lost = True
        return len(text)

    def flush(self) -> None:
        """Bring it to the reader, if there is one."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError:
            self.is_lost = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> Notes:
    """Make the streams ready, and return what stderr is from now on.

    Streams that the caller closed lead nowhere.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    notes = Notes(sys.stderr)
    sys.stderr = cast(TextIO, notes)
    return notes


def forget_output() -> None:
    """Send what is still buffered nowhere, so that nothing complains at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
