"""WholeLines: text held back until its line is whole, where an answer may be cut for lack of time.

What was said in pieces cannot be taken back, so the beginning of a line is not said.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Decoder", "WholeLines"]


class Decoder(Protocol):
    """Makes text of tokens, one at a time."""

    def add(self, token: int) -> str:
        """The text that a token completes."""

    def flush(self) -> str:
        """What is left at the end."""


class WholeLines:
    """The text of a decoder, in lines."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._begun = decoder, ""

    def add(self, token: int) -> str:
        """The lines that a token completes."""
        text = self._begun + self._decoder.add(token)
        lines, line_feed, self._begun = text.rpartition("\n")
        return lines + line_feed

    def flush(self) -> str:
        """The line that has begun, where the answer ended by itself."""
        text, self._begun = self._begun + self._decoder.flush(), ""
        return text
