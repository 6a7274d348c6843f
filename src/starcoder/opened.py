"""OpenModel: what an open model can do beside answering: tokens, logits, figures, and its end.

`LLM` is one, and adds the answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Ids
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from starcoder import arguments, prompt_cache, scoring
from starcoder.completion.prompts import token_ids
from starcoder.engine import EngineStats, Loop
from starcoder.errors import InputError
from starcoder.facts import Facts
from starcoder.loading import Loaded

__all__ = ["OpenModel"]

_Self = TypeVar("_Self", bound="OpenModel")


class OpenModel:
    """A model, its tokenizer, and the thread that runs its engine.

    Attributes:
        facts: what the model is, and how it runs here.
    """

    facts: Facts

    def __init__(self, loaded: Loaded) -> None:
        self.facts, self._tokenizer = loaded.facts, loaded.tokenizer
        self._loop, self._fingerprint = Loop(loaded.engine), loaded.fingerprint

    def logits(self, tokens: Ids[int]) -> NDArray[np.float32]:
        """Scores (n, n_vocab) of the token that follows each of `tokens` (n).

        Row i depends on `tokens[: i + 1]` only, to the last bit.

        Raises:
            InputError: no tokens, more than the context, or an id that no token has.
            MemoryLimitError: no memory for the 4 * n * n_vocab bytes.
        """
        return scoring.logits(self._loop, token_ids(tokens), self.facts.n_vocab)

    def save_cache(self, path: str | os.PathLike[str], max_bytes: int | None = None) -> int:
        """Keep computed prompts in a file, for the next start; requests go on meanwhile.

        Args:
            path: the file, which is replaced if it is one of this model's.
            max_bytes: what was used last is kept, up to so many; by default all, but for a part of
                a full cache that requests have meanwhile.

        Returns:
            how many tokens are in the file.

        Raises:
            FormatError: a file of that name that is something else, which stays as it is.
            WriteError: no room on the disk, no permission, no such folder.
        """
        name, most = Path(arguments.path("path", path)), self.facts.cache_bytes
        if max_bytes is not None:
            most = arguments.whole("max_bytes", max_bytes, 0, 1 << 62)
        return prompt_cache.save(self._loop, name, self._fingerprint, most)

    def load_cache(self, path: str | os.PathLike[str]) -> int:
        """Take over computed prompts from a file, as far as there is room.

        Returns:
            how many tokens need not be computed any more.

        Raises:
            FormatError: no such file; one that is damaged, of another version or another model.
                Nothing has changed then, and prompts are computed as ever.
        """
        name = Path(arguments.path("path", path))
        return prompt_cache.load(self._loop, name, self._fingerprint)

    def tokenize(self, text: str) -> list[int]:
        """The token ids of a text; `<|endoftext|>` and its like become one id each.

        Raises:
            InputError: text that was never valid Unicode, or that the vocabulary cannot spell.
        """
        return self._tokenizer.encode(arguments.text("text", text))

    def detokenize(self, tokens: Ids[int]) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            InputError: an id that no token has.
        """
        return self._tokenizer.decode(token_ids(tokens))

    def stats(self) -> EngineStats:
        """How many requests run and wait, and how much of the cache is free."""
        return self._loop.stats()

    def close(self) -> None:
        """End all requests and the thread that runs them; the weights are free when none is read.

        A model that is dropped ends by itself.
        """
        self._loop.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        found = "an attempt to copy it or send it to another process"
        advice = "make it once in each process, or before a fork: see docs/multiprocessing.md"
        raise InputError("LLM", found, "one LLM in each process", advice)
