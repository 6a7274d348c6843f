"""What is read of the corpus: files, functions as documents of their own, and gaps to fill.

A text that is filled is cut into prefix, middle and suffix, the three tokenized apart, in one of
two orders:

    <fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>{middle}<|endoftext|>
    <fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}{middle}<|endoftext|>

How documents come to rows is `rows`' affair.
"""

from __future__ import annotations

import ast
import math
import random
import re
import textwrap
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from training.corpus import File
from training.tokenizer import END, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX

MOST_REPETITIVE = 9.0  # size over compressed size; above are tables, and what programs wrote
TESTS_KEPT = 60  # percent: they are a third of all source, and much alike
TEST = re.compile(
    r"(^|/)(tests?|testing|testsuite|unit_?tests?|test_\w+|\w+_tests?|conftest)(/|\.py$)", re.I
)

FUNCTION_LINES = range(2, 45)
FUNCTION_CHARACTERS = range(50, 3000)

SUFFIX_FIRST_RATE = 0.5
PART_CHARACTERS = 150, 6000  # of a part that is filled; log-uniform
LINES_RATE, SPAN_RATE = 0.55, 0.15  # of the middles; the others lie between two random cuts
GAP_LINES = 4
SPAN_CHARACTERS = 4, 200


class Text(NamedTuple):
    """A document: what it is ("source", "test" or "algorithms"), and what it says."""

    kind: str
    text: str


def select(files: Sequence[File], algorithms: Sequence[File]) -> list[Text]:
    """What is read: not what repeats itself, and not all of the tests."""
    found = [Text("test" if TEST.search(f.path) else "source", f.text) for f in files]
    found += [Text("algorithms", file.text) for file in algorithms]
    return [text for text in found if _is_read(text.kind, text.text.encode())]


def _is_read(kind: str, data: bytes) -> bool:
    if len(data) > 2000 and len(data) / len(zlib.compress(data, 6)) > MOST_REPETITIVE:
        return False
    return kind != "test" or zlib.crc32(data) % 100 < TESTS_KEPT


def functions(text: str) -> Iterator[tuple[str, bool]]:
    """Functions and small classes of a file, without decorators; and whether each is a method."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        own = lines[node.lineno - 1 : node.end_lineno]
        body = textwrap.dedent("".join(own)).rstrip() + "\n"
        is_test = node.name.lower().startswith("test")
        if len(own) in FUNCTION_LINES and len(body) in FUNCTION_CHARACTERS and not is_test:
            head = body[: body.find("\n")]
            yield body, "(self" in head or "(cls" in head


def parts(text: str, rng: random.Random) -> Iterator[str]:
    """A file in parts that are filled, cut at ends of lines."""
    at = 0
    while at < len(text):
        end = at + int(_log_uniform(rng, *PART_CHARACTERS))
        if end < len(text):
            found = text.find("\n", end, end + 200)
            end = found if found >= 0 else end
        if end - at >= 40:
            yield text[at:end]
        at = end


def cut(text: str, rng: random.Random) -> tuple[int, int]:
    """Where the middle begins and ends.

    A gap of lines goes from the end of one, or behind its line break, or anywhere in the next, to
    the end of that or of one that follows.
    """
    toss = rng.random()
    if toss < LINES_RATE:
        ends = [match.start() for match in re.finditer("\n", text)]
        if len(ends) >= 2:
            first = rng.randrange(len(ends) - 1)
            last = min(first + rng.choice((1, 1, 1, *range(2, GAP_LINES + 1))), len(ends) - 1)
            begins = (ends[first], ends[first] + 1, rng.randint(ends[first], ends[first + 1]))
            return rng.choices(begins, (5, 1, 4))[0], ends[last]
    elif toss < LINES_RATE + SPAN_RATE:
        a = rng.randint(0, len(text))
        return a, min(len(text), a + int(_log_uniform(rng, *SPAN_CHARACTERS)))
    a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    return a, b


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def plain(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Each text as it is, with its end, in tokens."""
    return [np.array([*ids, END], np.uint16) for ids in encode(tokenizer, texts)]


def entered(texts: Sequence[str], tokenizer: Tokenizer, rng: random.Random) -> list[np.ndarray]:
    """Each text tokenized in two, after a line break, as where a prompt ends with Enter."""
    pieces: list[str] = []
    for text in texts:
        at = rng.choice([match.end() for match in re.finditer("\n", text)] or [0])
        pieces += [text[:at], text[at:]]
    ids = encode(tokenizer, pieces)
    return [np.array([*a, *b, END], np.uint16) for a, b in zip(ids[::2], ids[1::2], strict=True)]


def filled(texts: Sequence[str], tokenizer: Tokenizer, rng: random.Random) -> list[np.ndarray]:
    """Each text cut in three, in one of the two orders, in tokens."""
    pieces: list[str] = []
    for text in texts:
        a, b = cut(text, rng)
        pieces += [text[:a], text[a:b], text[b:]]
    ids = encode(tokenizer, pieces)
    found = []
    for prefix, middle, suffix in zip(ids[::3], ids[1::3], ids[2::3], strict=True):
        prompt = fim_prompt(prefix, suffix, rng.random() < SUFFIX_FIRST_RATE)
        found.append(np.array([*prompt, *middle, END], np.uint16))
    return found


def fim_prompt(prefix: Sequence[int], suffix: Sequence[int], suffix_first: bool) -> list[int]:
    """The tokens before the middle, in either order."""
    if suffix_first:
        return [FIM_PREFIX, FIM_SUFFIX, *suffix, FIM_MIDDLE, *prefix]
    return [FIM_PREFIX, *prefix, FIM_SUFFIX, *suffix, FIM_MIDDLE]


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Each text in tokens, without its end."""
    found: list[list[int]] = []
    for at in range(0, len(texts), 256):
        batch = tokenizer.encode_batch_fast(texts[at : at + 256], add_special_tokens=False)
        found += [encoding.ids for encoding in batch]
    return found
