"""Turn the corpus into rows of tokens: packed documents, half of them filled in the middle.

A row has `context + 1` tokens: inputs and the targets one further. There are rows of two kinds.
*Files* follow each other with <|endoftext|> between them and run on from row to row. *Functions*
are documents of their own, and each row of them begins with a `def`: so the model learns what
follows a bare header, and that functions end.

Documents are cut into parts, and half of the parts are filled in the middle, as in BigCode's own
training: prefix, suffix and middle are always seen together. Half of those are
prefix-suffix-middle and half suffix-first,

    <fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>{middle}<|endoftext|>
    <fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}{middle}<|endoftext|>

the three pieces tokenized apart. They are cut at two random characters, or, half of the time, where
editors ask: from the end or the midst of a line to the end of that line or of one of the next.
What is filled is shorter than what is not, so that there are many middles to learn from.
"""

from __future__ import annotations

import ast
import math
import random
import textwrap
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from training.corpus import File

FIM_RATE = 0.5  # of the tokens
SUFFIX_FIRST_RATE = 0.5
LINES_RATE = 0.5  # of the middles
GAP_LINES = 3  # of such a middle, at most
FIM_ROOM = 16  # tokens that filling adds: four special ones, and those cut in two
PLAIN_TOKENS = 64  # of the shortest part that is not filled; the longest is a row
FILLED_TOKENS = 32, 512  # of a part that is; both log-uniform

PLAIN_LINES = 12  # mean length of a file's functions, at most: longer ones teach no ends
FUNCTION_LINES = range(2, 25)
FUNCTION_SHARE = 0.3  # of the rows


def select(files: list[File]) -> tuple[list[File], list[File]]:
    """Choose what is learned from: files of short functions, and short functions of the others.

    Returns:
        The files, and the functions, each as a document; none of it twice.
    """
    with ProcessPoolExecutor(initializer=warnings.simplefilter, initargs=("ignore",)) as pool:
        looked_at = list(pool.map(_functions, files, chunksize=64))
    plain, functions = [], {}
    for file, (mean_lines, found) in zip(files, looked_at, strict=True):
        if mean_lines <= PLAIN_LINES:
            plain.append(file)
        else:
            functions.update({text: File(file.package, file.path, text) for text in found})
    return plain, list(functions.values())


def _functions(file: File) -> tuple[float, list[str]]:
    """The mean number of lines of a file's functions, and the source of the short ones."""
    lines = file.text.splitlines(keepends=True)
    lengths, found = [], []
    for node in ast.walk(ast.parse(file.text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            lengths.append(length)
            if length in FUNCTION_LINES:
                text = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
                if text.startswith("def "):
                    found.append(text.rstrip() + "\n")
    return (sum(lengths) / len(lengths) if lengths else math.inf), found


def build(
    files: list[File],
    functions: list[File],
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
    n_function_rows = int(max_rows * FUNCTION_SHARE) if functions else 0
    rng = random.Random(seed)
    made = [
        *islice(_rows(functions, tokenizer, context, rng, fim_rate, run_on=False), n_function_rows),
        *islice(
            _rows(files, tokenizer, context, rng, fim_rate, run_on=True),
            max_rows - n_function_rows,
        ),
    ]
    rows = np.array(made)
    np.random.default_rng(seed).shuffle(rows)
    partial = path.with_suffix(".partial.npy")
    np.save(partial, rows)
    partial.rename(path)


def _rows(
    files: list[File],
    tokenizer: Tokenizer,
    context: int,
    rng: random.Random,
    fim_rate: float,
    run_on: bool,
) -> Iterator[np.ndarray]:
    """Rows of (context + 1,) tokens; with `run_on`, a document goes on in the row that follows."""
    end = token_id(tokenizer, "<|endoftext|>")
    width = context + 1
    parts = {False: (PLAIN_TOKENS, width), True: (FILLED_TOKENS[0], min(FILLED_TOKENS[1], width))}
    plain_mean, filled_mean = (_mean_of_log_uniform(*parts[filled]) for filled in (False, True))
    weight = fim_rate * plain_mean
    filled_rate = weight / (weight + (1 - fim_rate) * filled_mean)  # of the parts
    row: list[int] = []
    for ids in _tokenized(rng.sample(files, len(files)), tokenizer):
        at = 0
        while at < len(ids):
            room = width - len(row)
            filled = room >= FIM_ROOM + FILLED_TOKENS[0] and rng.random() < filled_rate
            length = min(int(_log_uniform(rng, *parts[filled])), room - FIM_ROOM * filled)
            part = ids[at : at + length]
            at += len(part)
            row += [*fill_in_middle(tokenizer, part, rng), end][:room] if filled else part
            if at >= len(ids) and len(row) < width and not filled:
                row.append(end)
            if len(row) == width:
                yield np.array(row, np.uint16)
                row = []
                if not run_on:
                    break
    # What is left over does not fill a row: it is dropped.


def _tokenized(files: list[File], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for start in range(0, len(files), 256):
        texts = [file.text for file in files[start : start + 256]]
        for encoding in tokenizer.encode_batch_fast(texts):
            yield encoding.ids


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _mean_of_log_uniform(low: float, high: float) -> float:
    return (high - low) / math.log(high / low)


def fill_in_middle(tokenizer: Tokenizer, ids: list[int], rng: random.Random) -> list[int]:
    """One part of a document, cut in three, in one of the two trained orders."""
    text = tokenizer.decode(ids, skip_special_tokens=False)
    a, b = lines(text, rng) if rng.random() < LINES_RATE else _anywhere(text, rng)
    suffix_first = rng.random() < SUFFIX_FIRST_RATE
    return fim_prompt(tokenizer, text[:a], text[b:], suffix_first) + _ids(tokenizer, text[a:b])


def _anywhere(text: str, rng: random.Random) -> tuple[int, int]:
    a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    return a, b


def lines(text: str, rng: random.Random) -> tuple[int, int]:
    """A gap from the end of a line, or anywhere in the next, to the end of one that follows."""
    ends = [i for i, character in enumerate(text) if character == "\n"]
    if len(ends) < 2:
        return _anywhere(text, rng)
    first = rng.randrange(len(ends) - 1)
    last = min(first + rng.randint(1, GAP_LINES), len(ends) - 1)
    a = ends[first] if rng.random() < 0.5 else rng.randint(ends[first], ends[first + 1])
    return a, ends[last]


def fim_prompt(tokenizer: Tokenizer, prefix: str, suffix: str, suffix_first: bool) -> list[int]:
    """The tokens before the middle, in either order; the pieces are tokenized apart."""
    return fim_tokens(tokenizer, _ids(tokenizer, prefix), _ids(tokenizer, suffix), suffix_first)


def fim_tokens(
    tokenizer: Tokenizer, prefix: list[int], suffix: list[int], suffix_first: bool
) -> list[int]:
    """The same, from tokens."""
    names = ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")
    fim_prefix, fim_middle, fim_suffix = (token_id(tokenizer, name) for name in names)
    if suffix_first:
        return [fim_prefix, fim_suffix, *suffix, fim_middle, *prefix]
    return [fim_prefix, *prefix, fim_suffix, *suffix, fim_middle]


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
