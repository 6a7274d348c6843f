"""Prompts that end inside a token: their end is chosen anew, so that it fits what follows.

A text that ends with `import ` or a line feed ends with a token that the model has seldom seen
there: in what it learned from, the blank is the beginning of a longer one. So as much of the end is
taken back as a longer token could begin with, and until those bytes are said again only tokens that
say them may be chosen. What the model then goes on with is what it would of the text, however it is
cut into tokens.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starcoder.model.vocab import Vocab

__all__ = ["Healer", "Healing"]


class Healing:
    """The bytes that must be said first; a constraint of the sampler.

    Attributes:
        n_bytes: how many there are.
        is_in_prompt: whether the last token said nothing else.
    """

    is_over = False

    def __init__(self, healer: Healer, wanted: bytes) -> None:
        self.n_bytes, self.is_in_prompt = len(wanted), False
        self._healer, self._wanted = healer, wanted

    def allowed(self) -> NDArray[np.intp] | None:
        """The ids that may come next, ascending; None: all."""
        return self._healer.saying(self._wanted) if self._wanted else None

    def take(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        said = self._healer.tokens[token]
        self.is_in_prompt = 0 < len(said) <= len(self._wanted)
        self._wanted = self._wanted[len(said) :]


class Healer:
    """The tokens of a vocabulary in the order of their bytes; special ones are no text."""

    def __init__(self, vocab: Vocab) -> None:
        self.tokens, self._special = vocab.tokens, vocab.special_ids
        ids = [i for i, raw in enumerate(vocab.tokens) if raw and i not in vocab.special_ids]
        self._ids = sorted(ids, key=lambda i: vocab.tokens[i])
        self._texts = [vocab.tokens[i] for i in self._ids]
        self._longest = max(map(len, self._texts), default=0)

    def heal(self, ids: Sequence[int]) -> tuple[list[int], Healing | None]:
        """A prompt without its end, and how to say that again; all of it where it ends well.

        The first token always stays: a model needs one to begin with. A text behind `<fim_middle>`
        is healed like any other. Models learned those from texts that were cut anywhere, but the
        one in the package begins what is in the gap right three times as often so.
        """
        tail, best = b"", 0
        for n in range(1, len(ids)):
            token = ids[-n]
            tail = self.tokens[token] + tail
            if token in self._special or len(tail) >= self._longest:
                break
            if self._begins_longer(tail):
                best = n
        if not best:
            return list(ids), None
        wanted = b"".join(self.tokens[token] for token in ids[-best:])
        return list(ids[:-best]), Healing(self, wanted)

    def saying(self, wanted: bytes) -> NDArray[np.intp]:
        """The tokens that begin with these bytes, or are the first of them; ascending."""
        found = self._between(wanted, wanted + b"\xff" * self._longest)
        for n in range(1, len(wanted)):
            found += self._between(wanted[:n], wanted[:n] + b"\0")
        return np.array(sorted(found), np.intp)

    def _begins_longer(self, text: bytes) -> bool:
        """Whether a token begins with this text, and goes on."""
        first = bisect_left(self._texts, text + b"\0")
        return first < len(self._texts) and self._texts[first].startswith(text)

    def _between(self, low: bytes, high: bytes) -> list[int]:
        return self._ids[bisect_left(self._texts, low) : bisect_left(self._texts, high)]
