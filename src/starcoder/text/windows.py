"""Windows of a prompt: its parts nearest to the cursor, where there is no time for all of it.

Text goes from the left, line by line; special tokens stay, for they say what the rest is. Where a
hole is to be filled, the cursor stands in it: what is before it goes from the left, what is behind
it from the right, three tokens before for each one behind. The engine chooses a window by its
length.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from starcoder.model.vocab import Vocab

__all__ = ["PromptWindows"]

_BEFORE = 3  # tokens that are kept before the hole for each one behind it
_SUFFIX_NAMES = ("<fim_suffix>", "<fim-suffix>")
_MIDDLE_NAMES = ("<fim_middle>", "<fim-middle>")


class PromptWindows:
    """The windows of a prompt that begin with a line.

    Attributes:
        lengths: tokens of each window, ascending; the last is the whole prompt.
    """

    def __init__(self, ids: Sequence[int], vocab: Vocab) -> None:
        self._ids, self._behind = ids, _behind_hole(ids, vocab)
        # Where the cursor is.
        self._hole = len(ids) if self._behind.stop + 1 < len(ids) else self._behind.start
        self._special = [i for i, token in enumerate(ids) if token in vocab.special_ids]
        starts = [i + 1 for i, token in enumerate(ids) if vocab.tokens[token].endswith(b"\n")]
        # Where what is behind the hole may end: with a line, or not begin.
        self._ends = [self._behind.start, *(i for i in starts if i in self._behind)]
        # Of each window, where its text before the hole begins, and where that behind it ends.
        self._cuts: list[tuple[int, int]] = []
        self.lengths: list[int] = []
        for start in reversed(starts):
            if start < self._hole and start not in self._behind:
                self._add(start, self._end_for(start))
        for end in self._ends:  # all that is before the hole, and more and more of what is behind
            self._add(0, end)
        self._cuts.append((0, self._behind.stop))
        self.lengths.append(len(ids))

    def window(self, i: int) -> list[int]:
        """The token ids of one."""
        (start, end), behind, special = self._cuts[i], self._behind, set(self._special)
        return [
            token
            for at, token in enumerate(self._ids)
            if at in special or (at < end if at in behind else at >= start)
        ]

    def _add(self, start: int, end: int) -> None:
        n = self._n_text(start, len(self._ids)) + len(self._special)
        n -= self._n_text(max(start, self._behind.start), self._behind.stop)
        n += self._n_text(self._behind.start, end)
        if n < len(self._ids) and (not self.lengths or n > self.lengths[-1]):
            self._cuts.append((start, end))
            self.lengths.append(n)

    def _n_text(self, start: int, stop: int) -> int:
        """Tokens from `start` to `stop` that are not special."""
        if start >= stop:
            return 0
        n_special = bisect_left(self._special, stop) - bisect_left(self._special, start)
        return stop - start - n_special

    def _end_for(self, start: int) -> int:
        """Where what is behind the hole ends in a window that begins at `start`."""
        most = self._behind.start + (self._hole - start) // _BEFORE
        if most >= self._behind.stop:
            return self._behind.stop
        return self._ends[bisect_right(self._ends, most) - 1]


def _behind_hole(ids: Sequence[int], vocab: Vocab) -> range:
    """The places of the text behind the hole; empty, at the end, if there is none."""
    suffix, middle = _last(ids, vocab, _SUFFIX_NAMES), _last(ids, vocab, _MIDDLE_NAMES)
    if suffix is None or middle is None or suffix > middle:
        return range(len(ids), len(ids))
    return range(suffix + 1, middle)


def _last(ids: Sequence[int], vocab: Vocab, names: Sequence[str]) -> int | None:
    wanted = {vocab.find(name) for name in names}
    return next((i for i in reversed(range(len(ids))) if ids[i] in wanted), None)
