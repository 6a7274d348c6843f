"""Rows of tokens for training, drawn anew for every epoch.

A row has `context + 1` tokens: inputs, and the targets one further. There are rows of three kinds.
*Plain* rows are files one after the other, running on from row to row. *Filled* rows are gaps with
what is around them, never cut by the end of a row. *Function* rows are functions and small classes,
each row beginning with one: so the model learns what follows a bare header, and that bodies end.

In every epoch each file is tossed anew between plain and filled, and all cuts are drawn anew.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from training.documents import Text, entered, filled, functions, parts, plain

FIM_RATE = 0.5  # of the files
FUNCTION_FIM_RATE, FUNCTION_ENTER_RATE = 0.25, 0.1
METHOD_RATE = 0.3  # of the methods that become documents


class Mix(NamedTuple):
    """How often documents of each kind are read in an epoch; the fraction is tossed."""

    source: float
    test: float
    algorithms: float
    functions: float

    @classmethod
    def of(cls, epoch: int) -> Mix:
        """Later epochs, where the learning rate falls, have more functions and fewer tests."""
        return cls(1.0, 1.0, 3.0, 1.0) if epoch < 3 else cls(1.0, 0.6, 4.0, 1.6)


def draw(
    texts: Sequence[Text], tokenizer: Tokenizer, context: int, mix: Mix, rng: random.Random
) -> np.ndarray:
    """All rows of some documents in one epoch, (n, context + 1), shuffled."""
    whole: list[str] = []
    to_fill: list[str] = []
    short: list[str] = []
    for kind, text in texts:
        often: float = getattr(mix, kind)
        for _ in range(_times(rng, often)):
            if rng.random() < FIM_RATE:
                to_fill += parts(text, rng)
            else:
                whole.append(text)
        for function, is_method in functions(text) if kind != "test" else ():
            rate = mix.functions * often * (METHOD_RATE if is_method else 1.0)
            short += [function] * _times(rng, rate)
    for some in (whole, to_fill, short):
        rng.shuffle(some)
    n_filled, n_entered = (int(len(short) * r) for r in (FUNCTION_FIM_RATE, FUNCTION_ENTER_RATE))
    documents = filled(short[:n_filled], tokenizer, rng)
    documents += entered(short[n_filled : n_filled + n_entered], tokenizer, rng)
    documents += plain(short[n_filled + n_entered :], tokenizer)
    rng.shuffle(documents)
    gaps = filled(to_fill, tokenizer, rng)
    kinds = (
        running_on(plain(whole, tokenizer), context),
        headed(documents, context),
        unbroken(gaps, documents or gaps, context, rng),
    )
    rows = np.concatenate(kinds)
    np.random.default_rng(rng.randrange(2**32)).shuffle(rows)
    return rows


def _times(rng: random.Random, n: float) -> int:
    return int(n) + (rng.random() < n % 1)


def running_on(documents: Sequence[np.ndarray], context: int) -> np.ndarray:
    """Documents one after the other; what is left over is dropped."""
    flat = np.concatenate([np.zeros(0, np.uint16), *documents])
    n = max(0, (len(flat) - 1) // context)
    rows: np.ndarray = flat[np.arange(n)[:, None] * context + np.arange(context + 1)]
    return rows


def headed(documents: Sequence[np.ndarray], context: int) -> np.ndarray:
    """Every row begins with a document; the last of a row is cut off."""
    rows, row, room = [], [], context + 1
    for document in documents:
        row.append(document[:room])
        room -= len(row[-1])
        if room == 0:
            rows.append(np.concatenate(row))
            row, room = [], context + 1
    return np.array(rows, np.uint16).reshape(-1, context + 1)


def unbroken(
    documents: Sequence[np.ndarray], fillers: Sequence[np.ndarray], context: int, rng: random.Random
) -> np.ndarray:
    """Whole documents, where they fit into a row; its room is filled with beginnings of others."""
    topped_up: list[np.ndarray] = []
    room = context + 1
    for document in documents:
        if len(document) > context + 1:
            continue
        while 0 < room < len(document):
            topped_up.append(rng.choice(fillers)[:room])
            room -= len(topped_up[-1])
        topped_up.append(document)
        room = (room or context + 1) - len(document)
    flat = np.concatenate([np.zeros(0, np.uint16), *topped_up])
    return flat[: len(flat) // (context + 1) * (context + 1)].reshape(-1, context + 1)
