"""Turn the corpus into rows of tokens: packed documents, half of them filled in the middle.

A row has `context + 1` tokens: inputs and the targets one further. Documents follow each other with
<|endoftext|> between them and run on from row to row. The part of a document that lies in one row
is what fill-in-the-middle works on, as in BigCode's own training: so prefix, suffix and middle are
always seen together. Half of the parts are left alone; of the others half are prefix-suffix-middle
and half suffix-first,

    <fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>{middle}
    <fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}{middle}

cut at two random characters, the three pieces tokenized apart.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.corpus import File

FIM_RATE = 0.5
SUFFIX_FIRST_RATE = 0.5
FIM_TOKENS = 3  # special tokens a filled part has


def build(
    files: list[File],
    tokenizer: Tokenizer,
    context: int,
    seed: int,
    max_rows: int,
    path: Path,
    fim_rate: float = FIM_RATE,
) -> None:
    """Write at most `max_rows` shuffled rows, a uint16 `.npy` of shape (rows, context + 1).

    One epoch at most: no document is used twice.
    """
    made = islice(_rows(files, tokenizer, context, seed, fim_rate), max_rows)
    rows = np.fromiter(made, dtype=np.dtype((np.uint16, context + 1)))
    np.random.default_rng(seed).shuffle(rows)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, rows)
    partial.rename(path)


def _rows(
    files: list[File], tokenizer: Tokenizer, context: int, seed: int, fim_rate: float
) -> Iterator[np.ndarray]:
    rng = random.Random(seed)
    end = token_id(tokenizer, "<|endoftext|>")
    order = rng.sample(files, len(files))
    width = context + 1
    row: list[int] = []
    for start in range(0, len(order), 256):
        batch = tokenizer.encode_batch_fast([file.text for file in order[start : start + 256]])
        for encoding in batch:
            ids = encoding.ids
            at = 0
            while at < len(ids):
                room = width - len(row)
                if room < 32:  # too little to show anything: begin the next row with what follows
                    row += ids[at : at + room]
                    at += room
                else:
                    filled = rng.random() < fim_rate
                    piece = ids[at : at + room - (FIM_TOKENS if filled else 0)]
                    at += len(piece)
                    row += fill_in_middle(tokenizer, piece, rng)[:room] if filled else piece
                if at >= len(ids) and len(row) < width:
                    row.append(end)
                if len(row) == width:
                    yield np.array(row, np.uint16)
                    row = []
    # What is left over does not fill a row: it is dropped.


def fill_in_middle(tokenizer: Tokenizer, ids: list[int], rng: random.Random) -> list[int]:
    """One part of a document, cut at two random characters, in one of the two trained orders."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    suffix_first = rng.random() < SUFFIX_FIRST_RATE
    return fim_prompt(tokenizer, text[:a], text[b:], suffix_first) + _ids(tokenizer, text[a:b])


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, suffix_first: bool) -> list[int]:
    """The tokens before the middle, in either order; the pieces are tokenized apart."""
    names = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")
    fim_prefix, fim_middle, fim_suffix = (token_id(tokenizer, name) for name in names)
    before, after = _ids(tokenizer, prefix), _ids(tokenizer, suffix)
    if suffix_first:
        return [fim_prefix, fim_suffix, *after, fim_middle, *before]
    return [fim_prefix, *before, fim_suffix, *after, fim_middle]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token.

    Raises:
        ValueError: the tokenizer has no such token.
    """
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}: train it again with the special tokens")
    return found
