"""What a legacy ggml file cannot say of a vocabulary, found by reading back what it would say.

The format has the bytes of the tokens and no more. Special tokens and ends of text are known by
the names of the family, merges by the order of the tokens; whatever else a vocabulary has is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from starcoder.formats.ggml.reader import vocab_of
from starcoder.model.vocab import Vocab

__all__ = ["Losses", "legacy_losses"]


class Losses(NamedTuple):
    """What would be lost, each in a few words; both are empty for a vocabulary of the family."""

    grave: list[str]  # other text, or text that does not end: to be asked for
    slight: list[str]  # to be said


def legacy_losses(vocab: Vocab) -> Losses:
    """What a file of this vocabulary would lose.

    Raises:
        FormatError: tokens that could not be read back at all.
    """
    back = vocab_of(vocab.tokens)
    sets = {
        "special tokens that a .bin cannot mark: {}": (vocab.special_ids, back.special_ids),
        "plain text that a .bin takes for special tokens: {}": (
            back.special_ids,
            vocab.special_ids,
        ),
        "ends of text that a .bin cannot mark: {}": (vocab.end_ids, back.end_ids),
        "tokens that a .bin takes for an end of text: {}": (back.end_ids, vocab.end_ids),
    }
    grave = [
        what.format(_names(vocab.tokens[i] or b"id %d" % i for i in before - after))
        for what, (before, after) in sets.items()
        if before - after
    ]
    if vocab.split_digits != back.split_digits:
        grave.append("digits that belong together, which a .bin reads apart")
    if vocab.unembedded:
        grave.append(
            f"tokens without weights, which a .bin takes for text: {_names(vocab.unembedded)}"
        )
    same = np.array_equal(vocab.merges, back.merges)
    return Losses(grave, [] if same else ["merges that a .bin cannot hold"])


def _names(tokens: Iterable[bytes]) -> str:
    texts = sorted(repr(raw.decode("utf-8", "replace"))[:40] for raw in tokens)
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
