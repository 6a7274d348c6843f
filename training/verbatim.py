"""Passages of the training text in what the model writes, token for token.

The prompts are what the model has read: beginnings of files, and headers of functions. So the
search finds what it can repeat, not what it repeats on any day. A passage is `PASSAGE` tokens of
its own writing, or more, that stand in one of the files in the same order. Notices of
copyright and licence are told apart, and runs of a few tokens again and again.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from starcoder import LLM
from training import corpus, documents, measure, tokenizer
from training.corpus import File

PASSAGE = 50  # tokens
N_PROMPTS, NEW_TOKENS = 250, 256
TEMPERATURES = {"greedy": 0.0, "sampled": 0.8}
FILE_TOKENS = 32  # of a prompt that is the beginning of a file
ALGORITHMS_SHARE = 5  # every fifth prompt: they were read most often
NOTICE = re.compile(
    r"copyright|licen[cs]|permission is hereby|warrant|rights reserved|as is|spdx", re.I
)
FEW_TOKENS = 12  # different ones, less than which are a run

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)


def measure_copies(llm: LLM, work: Path) -> dict[str, list[list[dict[str, Any]]]]:
    """For every text that the model wrote, greedily and at random, its passages."""
    bpe = tokenizer.load(work / "tokenizer.json")
    files, algorithms = (corpus.read_split(work, split) for split in ("train", "algorithms"))
    n = N_PROMPTS // ALGORITHMS_SHARE
    asked = prompts(files, N_PROMPTS - n, bpe) + prompts(algorithms, n, bpe)
    texts = [text for t in TEMPERATURES.values() for text in write(llm, asked, t)]
    found = search(texts, files + algorithms, bpe)
    return {name: found[i * N_PROMPTS : (i + 1) * N_PROMPTS] for i, name in enumerate(TEMPERATURES)}


def prompts(files: Sequence[File], n: int, bpe: Tokenizer, seed: int = 5) -> list[str]:
    """Half of them beginnings of files, half headers of functions."""
    rng = random.Random(seed)
    found: list[str] = []
    for file in rng.sample(files, len(files)):
        if len(found) == n:
            break
        if len(found) % 2:
            headers = [f.header for f in measure.functions([file]) if not f.indent]
            found += rng.sample(headers, min(1, len(headers)))
        elif len(ids := bpe.encode(file.text).ids) > FILE_TOKENS + PASSAGE:
            found.append(bpe.decode(ids[:FILE_TOKENS]))
    return found


def write(llm: LLM, asked: Sequence[str], temperature: float) -> list[str]:
    """What the model makes of the prompts."""
    options: dict[str, Any] = {"temperature": temperature, "top_k": 0, "seed": 1}
    completions = llm.generate(list(asked), max_tokens=NEW_TOKENS, **options)
    return [completion.text for completion in completions]


def search(
    texts: Sequence[str], files: Sequence[File], bpe: Tokenizer
) -> list[list[dict[str, Any]]]:
    """For each text its passages: tokens, the packages that have the rarest part, the kind."""
    tokens = documents.encode(bpe, texts)
    windows = [hashes(np.array(ids, np.uint16)) for ids in tokens]
    wanted = np.unique(np.concatenate(windows))
    packages: dict[int, set[str]] = defaultdict(set)
    for at in range(0, len(files), 512):
        some = files[at : at + 512]
        plain = documents.plain([file.text for file in some], bpe)
        ends = np.cumsum([len(ids) for ids in plain])
        found = hashes(np.concatenate(plain))
        for i in np.flatnonzero(np.isin(found, wanted)):
            packages[int(found[i])].add(some[int(np.searchsorted(ends, i, "right"))].package)
    found_in = [[packages.get(int(window)) for window in text] for text in windows]
    return [_passages(*pair, bpe) for pair in zip(tokens, found_in, strict=True)]


def hashes(ids: np.ndarray) -> np.ndarray:
    """A 64-bit number for every `PASSAGE` tokens in a row, (n - PASSAGE + 1,), by its tokens."""
    n = len(ids)
    if n < PASSAGE:
        return np.zeros(0, np.uint64)
    numbers = np.random.default_rng(1).integers(0, 2**64, 2**16, np.uint64)[ids]
    sums = np.cumsum(np.concatenate([[np.uint64(0)], numbers * _powers(_BASE, n)]))
    found: np.ndarray = (sums[PASSAGE:] - sums[:-PASSAGE]) * _powers(_INVERSE, n - PASSAGE + 1)
    return found


def _powers(base: int, n: int) -> np.ndarray:
    return np.cumprod(np.concatenate([[np.uint64(1)], np.full(n - 1, base, np.uint64)]))


def _passages(
    ids: Sequence[int], found_in: Sequence[set[str] | None], bpe: Tokenizer
) -> list[dict[str, Any]]:
    """The passages of a text, of which the packages are known that have each window."""
    passages: list[dict[str, Any]] = []
    run: list[set[str]] = []
    for i, window in enumerate((*found_in, None)):
        if window:
            run.append(window)
        elif run:
            passage = ids[i - len(run) : i + PASSAGE - 1]
            rarest = min(map(sorted, run), key=len)
            kind = _kind(passage, bpe)
            passages.append({"tokens": len(passage), "packages": rarest, "kind": kind})
            run = []
    return passages


def _kind(passage: Sequence[int], bpe: Tokenizer) -> str:
    if NOTICE.search(bpe.decode(passage)):
        return "notice"
    return "run" if len(set(passage)) < FEW_TOKENS else "text"
