"""Rows for mending: trees of tokens, in which one text serves many gaps.

The trunk of a tree is a piece of source. A branch leaves it somewhere; it sees what lies before
that place, and itself, at the positions that it would have as a text of its own. So one pass
through a trunk of 600 tokens teaches that text, and ten gaps in it. What is learned is marked for
each token with its kind; `mend` says how much a kind weighs.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from training.documents import fim_prompt
from training.lessons import Lesson
from training.tokenizer import END, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

FIRST_WEIGHTS = 4.0, 3.0, 2.0  # of a middle's first tokens: they decide where it goes
MIDDLE_TOKENS = 40
TRUNK_SHARE = 0.62


class Target(NamedTuple):
    """What is learned at a token: the next one; of what kind, how much, and from which other."""

    at: int
    token: int
    kind: str
    weight: float = 1.0
    teacher: int = -1  # the token of the trunk after which the trained model says the same


class Row:
    """A tree of `size` tokens at most, and what is learned from it."""

    def __init__(self, size: int) -> None:
        self.n = 0
        self.ids = np.zeros(size, np.int64)
        self.positions = np.zeros(size, np.int64)
        self.mask = np.eye(size, dtype=bool)  # (size, size): which token sees which
        self.targets: list[Target] = []

    @property
    def room(self) -> int:
        """Tokens that the row can still take."""
        return len(self.ids) - self.n

    def add(self, ids: Sequence[int] | np.ndarray, root: int = 0, seen: int = 0) -> int:
        """Add tokens that see `seen` ones from `root` on, and themselves; return where they are."""
        at, end = self.n, self.n + len(ids)
        self.ids[at:end] = ids
        self.positions[at:end] = np.arange(seen, seen + len(ids))
        self.mask[at:end, root : root + seen] = True
        self.mask[at:end, at:end] = np.tri(len(ids), dtype=bool)
        self.n = end
        return at

    def learn(
        self, at: int, ids: Sequence[int] | np.ndarray, kind: str, weight: float = 1.0
    ) -> None:
        """Learn that `ids` follow each other, from the token at `at` on."""
        self.targets += [Target(at + i, int(x), kind, weight) for i, x in enumerate(ids)]


class Grower:
    """Makes rows out of some texts.

    Args:
        files: Files, (n,) tokens each.
        functions: Functions, each a document; the same.
        bpe: The tokenizer.
        rng: Of all that is tossed.
    """

    def __init__(
        self,
        files: Sequence[np.ndarray],
        functions: Sequence[np.ndarray],
        bpe: Tokenizer,
        rng: random.Random,
    ) -> None:
        self._files, self._functions = files, functions
        self._bpe, self._rng = bpe, rng
        self.size = 1024  # tokens of a row; files have twice as many
        self.lessons: Sequence[Lesson] = ()
        texts = [bpe.decode([i], skip_special_tokens=False) for i in range(bpe.get_vocab_size())]
        self._breaks = np.array([text.startswith("\n") for text in texts])

    def gaps(self, prefix: int, suffix: int, full: float) -> Row:
        """Trunks after <fim_prefix>, with gaps: the order prefix, suffix, middle.

        Args:
            prefix: Tokens before a gap, at most.
            suffix: Tokens behind it, at most.
            full: Share of the trunks and suffixes that are as long as they may be.
        """
        row, rng = Row(self.size), self._rng
        while row.room > 80:
            length = prefix if rng.random() < full else _log_uniform(rng, min(32, prefix), prefix)
            length = min(length, int(row.room * TRUNK_SHARE))
            ids = self._piece(length + 400)
            trunk = ids[:length]
            root = row.add([FIM_PREFIX, *trunk])
            row.learn(root + 1, trunk[1:], "text")
            for _ in range(30):
                gap = self._gap(ids, max(4, len(trunk) // 8), len(trunk))
                longest = min(suffix, row.room - MIDDLE_TOKENS - 4)
                if gap is None or longest < 2:
                    continue
                a, b = gap
                n = longest if rng.random() < full else _log_uniform(rng, 2, longest)
                middle = [*ids[a:b], END]
                branch = [FIM_SUFFIX, *ids[b : b + n], FIM_MIDDLE]
                at = row.add([*branch, *middle[:-1]], root, a + 1) + len(branch) - 1
                for i, token in enumerate(middle):
                    weight = FIRST_WEIGHTS[i] if i < len(FIRST_WEIGHTS) else 1.0
                    taught = i < b - a and a + i < len(trunk)
                    teacher = root + a + i if taught else -1
                    row.targets.append(Target(at + i, int(token), "middle", weight, teacher))
        return row

    def behind_suffix(self) -> Row:
        """Gaps with the suffix first; they teach what the trained model says, as text does."""
        row, rng = Row(self.size), self._rng
        while row.room > 100:
            ids = self._piece(min(row.room, _log_uniform(rng, 100, 900)) - 8)
            gap = self._gap(ids, len(ids) // 4, len(ids))
            if gap is None:
                continue
            a, b = gap
            prompt = fim_prompt(list(ids[:a]), list(ids[b:]), suffix_first=True)
            middle = [*ids[a:b], END]
            at = row.add([*prompt, *middle]) + len(prompt) - 1
            row.learn(at, middle, "text", 2.0)
            row.learn(at - a + 1, ids[1:a], "text")
        return row

    def text(self) -> Row:
        """Source or functions; and line breaks that stand alone, as where a prompt ends."""
        row, rng = Row(self.size), self._rng
        length = int(self.size * 0.72)
        if rng.random() < 0.5:
            trunk: list[int] = []
            while len(trunk) < length:
                trunk += [*rng.choice(self._functions), END]
        else:
            trunk = [*self._piece(length), END]
        ids = np.array(trunk[:length])
        row.add(ids)
        row.learn(0, ids[1:], "text")
        for a in rng.sample(ends := list(self._ends(ids)), len(ends)):
            rest = self._bpe.decode(list(ids[a : a + 24]), skip_special_tokens=False)
            found = re.match(r"(\n{1,2})([^\n<].*)", rest.split("<|endoftext|>")[0], re.S)
            if not found:
                continue
            breaks, following = (self._bpe.encode(piece).ids for piece in found.groups())
            branch = [*breaks, *following[: rng.randint(4, 16)]]
            if len(branch) > row.room:
                break
            root = max((i + 1 for i in range(a) if ids[i] == END), default=0)
            at = row.add(branch, root, int(a) - root)
            row.learn(at + len(breaks) - 1, branch[len(breaks) :], "enter", 1.5)
        return row

    def files(self) -> Row:
        """Files one after the other, to keep what is far into the context."""
        row = Row(2 * self.size)
        while row.room:
            file = self._rng.choice(self._files)
            ids = [*file[self._rng.choice((0, self._rng.randrange(len(file)))) :], END]
            row.add(ids[: row.room], 0, row.n)
        row.learn(0, row.ids[1:], "text")
        return row

    def own_text(self) -> Row:
        """What the model wrote, with what it is to do less and more."""
        row = Row(self.size)
        for ids, signs in self._rng.choices(self.lessons, k=40) if self.lessons else ():
            if len(ids) <= row.room:
                at = row.add(ids)
                row.targets += [
                    Target(at + i - 1, ids[i], "good" if signs[i] > 0 else "loop")
                    for i in range(1, len(ids))
                    if signs[i]
                ]
        return row

    def _piece(self, length: int) -> np.ndarray:
        """Some tokens of a file."""
        while True:
            file = self._rng.choice(self._files)
            start = self._rng.randrange(max(1, len(file) - length))
            if len(file) - start >= 40:
                return file[start : start + length]

    def _ends(self, ids: np.ndarray) -> np.ndarray:
        """Where lines end: tokens that begin with a line break, after one that does not."""
        breaks = self._breaks[ids]
        return 1 + np.flatnonzero(breaks[1:] & ~breaks[:-1])

    def _gap(self, ids: np.ndarray, low: int, high: int) -> tuple[int, int] | None:
        """A middle that begins in [low, high), at the end of a line or within the next."""
        ends, rng = self._ends(ids), self._rng
        first, last = np.searchsorted(ends, (low, high))
        if first >= last:
            return None
        i = rng.randrange(first, last)
        j = i + rng.choice((1, 1, 1, 1, 2, 2, 3))
        if j >= len(ends):
            return None
        a, b = int(ends[i]), int(ends[j])
        if rng.random() < 0.3 and ends[i + 1] - a > 3:
            a = rng.randrange(a + 1, int(ends[i + 1]) - 1)
        return (a, b) if a < high and b - a <= MIDDLE_TOKENS else None


def _log_uniform(rng: random.Random, low: float, high: float) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
