"""Who is told how far a download is: a bar, a page, a log. What tells it is `_download`."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Progress"]


class Progress(Protocol):
    """Who wants to know how far a download is."""

    def start(self, total: int) -> None:
        """So many bytes will come."""

    def advance(self, n: int) -> None:
        """So many more have come."""
