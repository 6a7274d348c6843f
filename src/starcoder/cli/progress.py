"""How far a long task is, on stderr: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Progress"]

_LINE_SECONDS = 5.0


class Progress:
    """Counts bytes of `total`; to be used in a `with` statement.

    Lines come at most every few seconds, so a short task writes none.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._total = self._done = 0
        self._started = self._told = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int) -> None:
        """The task has so many bytes."""
        self._total, self._done = total, 0
        self._started = self._told = time.monotonic()
        if sys.stderr.isatty():
            self._show_bar(total)

    def advance(self, n: int) -> None:
        """So many more bytes are done."""
        self._done += n
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done)
        elif time.monotonic() - self._told >= _LINE_SECONDS:
            self._told = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _show_bar(self, total: int) -> None:
        from rich import progress
        from rich.console import Console

        if self._bar is not None:
            self._bar.stop()
        self._bar = progress.Progress(
            progress.TextColumn(self._label),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(self._label, total=total)
        self._bar.start()

    def _line(self) -> str:
        seconds = time.monotonic() - self._started
        speed = self._done / max(seconds, 1e-9)
        left = (self._total - self._done) / max(speed, 1.0)
        mb = f"{self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB"
        return f"{self._label}: {mb}, {speed / 1e6:.0f} MB/s, {left:.0f} s left"
