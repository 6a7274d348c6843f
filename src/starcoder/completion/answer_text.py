"""The text of an answer as its tokens come: behind the prompt, and up to a stop string.

The engine's thread and whoever reads the answer each follow it with an `AnswerText` of their own,
so both end it with the same token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starcoder.text.stops import StopSearch
from starcoder.text.tokenizer import StreamDecoder, Tokenizer

__all__ = ["AnswerText", "Stopping"]


class AnswerText:
    """Makes whole characters of tokens.

    Args:
        tokenizer: what spells the tokens.
        stops: stop strings.
        n_unsearched: in the text of so many tokens no stop string is looked for.
        n_prompt_bytes: so many bytes come first that are the prompt's, said again.

    Attributes:
        is_in_prompt: whether the last token said nothing but bytes of the prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        *,
        n_unsearched: int = 0,
        n_prompt_bytes: int = 0,
    ) -> None:
        self.is_in_prompt = False
        self._token_bytes, self._n_left = tokenizer.token_bytes, n_prompt_bytes
        self._decoder = StreamDecoder(tokenizer, n_prompt_bytes)
        self._search, self._n_unsearched = StopSearch(stops), n_unsearched

    @property
    def is_over(self) -> bool:
        """Whether a stop string was found."""
        return self._search.is_over

    def add(self, token: int) -> str:
        """The text that can be shown with this token, often ""."""
        n_left = self._n_left
        self._n_left = max(0, n_left - len(self._token_bytes(token)))
        self.is_in_prompt = 0 < len(self._token_bytes(token)) <= n_left
        text = self._decoder.add(token)
        if self.is_in_prompt or not self._n_unsearched:
            return self._search.add(text)
        self._n_unsearched -= 1
        return text

    def flush(self) -> str:
        """The rest, where the answer ends: U+FFFD for a character cut short."""
        text = self._search.add(self._decoder.flush())
        return text + self._search.flush()


class Stopping:
    """A constraint of the sampler that allows everything, until a stop string was said."""

    is_in_prompt = False

    def __init__(self, text: AnswerText) -> None:
        self._text = text

    @property
    def is_over(self) -> bool:
        """Whether a stop string was said."""
        return self._text.is_over

    def allowed(self) -> NDArray[np.intp] | None:
        """Every id."""
        return None

    def take(self, token: int) -> None:
        """Go on behind a token that was chosen."""
        self._text.add(token)
