"""Stop strings: where a text ends, and what of it may be shown before that is known.

The text ends before the stop string that is complete first; of several that are complete with the
same character, before the longest. So the end depends on the characters alone, not on the tokens
that they came in. What might be the beginning of a stop string is held back until it is clear.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

__all__ = ["StopSearch"]


class StopSearch:
    """Looks for stop strings in a text that comes bit by bit.

    By Knuth, Morris and Pratt: no character is looked at again, however long the strings are.

    Attributes:
        is_over: whether one was found; nothing is added behind it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_over = False
        self._stops = [(stop, _fallbacks(stop)) for stop in stops]
        self._n_matched = [0] * len(stops)  # of each, the characters that the text ends with
        self._held = ""

    def add(self, text: str) -> str:
        """What can be shown with this much more text: never a part of a stop string."""
        if self.is_over:
            return ""
        if not self._stops:
            return text
        whole = self._held + text
        for n_seen, char in enumerate(text, len(self._held) + 1):
            n_found = max(self._step(k, char) for k in range(len(self._stops)))
            if n_found:
                self.is_over, self._held = True, ""
                return whole[: n_seen - n_found]
        n_shown = len(whole) - max(self._n_matched)
        self._held = whole[n_shown:]
        return whole[:n_shown]

    def flush(self) -> str:
        """What was held back, where the text ends without a stop string."""
        held, self._held = self._held, ""
        self._n_matched = [0] * len(self._stops)
        return held

    def _step(self, k: int, char: str) -> int:
        """Go on by a character; the length of stop string `k` if it is complete, or 0."""
        stop, fallbacks = self._stops[k]
        n = self._n_matched[k]
        while n and stop[n] != char:
            n = fallbacks[n]
        n += stop[n] == char
        self._n_matched[k] = n
        return n if n == len(stop) else 0


@lru_cache(64)
def _fallbacks(stop: str) -> list[int]:
    """For each n below the length: how many characters still match where the one behind n does not.

    These are the longest beginning of `stop` that its first n characters end with, all n excepted.
    """
    fallbacks, n = [0, 0], 0
    for char in stop[1:-1]:
        while n and stop[n] != char:
            n = fallbacks[n]
        n += stop[n] == char
        fallbacks.append(n)
    return fallbacks
