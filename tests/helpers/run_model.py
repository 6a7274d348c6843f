"""A model without an engine: logits in chunks, greedy tokens, and how far they are from others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from starcoder import LLM, formats
from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.kv_cache import RUN_LEN, KVCache
from starcoder.model.models import Model

# Mean KL divergence from the logits of float32 arithmetic on the same weights, in nats. llama.cpp
# has 2e-7, 4e-7, 1.5e-5 and 3e-4.
LIMITS = {"f32": 1e-6, "f16": 1e-6, "bf16": 3e-5}
QUANTIZED_LIMIT = 3e-4


def limit(file: str) -> float:
    kind = Path(file).stem.removeprefix("legacy-")
    return LIMITS.get(kind, QUANTIZED_LIMIT)


def divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean over rows of KL(softmax(expected) || softmax(found))."""

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x.astype(np.float64) - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    p, q = log_softmax(expected), log_softmax(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def cache_for(model: Model, n: int, seed: int = 3) -> tuple[KVCache, list[int]]:
    """A cache of several runs of blocks, and a table for `n` positions, out of order in them."""
    cache = KVCache(model.config, -(-2 * n // BLOCK_LEN) + 2 * RUN_LEN)
    order = np.random.default_rng(seed).permutation(cache.n_blocks)
    return cache, order[: -(-n // BLOCK_LEN)].tolist()


def logits(model: Model, ids: Sequence[int], sizes: Sequence[int] = ()) -> np.ndarray:
    """Logits of every position, from chunks of these sizes (one of all, if none are given)."""
    cache, table = cache_for(model, len(ids))
    out, at = [], 0
    for size in sizes or [len(ids)]:
        batch = Batch.of([(ids[at : at + size], at, table)], list(range(size)))
        out.append(model.forward(batch, cache))
        at += size
    return np.concatenate(out)


def greedy(model: Model, ids: Sequence[int], n: int) -> list[int]:
    cache, table = cache_for(model, len(ids) + n)
    out, at, new = [], 0, list(ids)
    for _ in range(n):
        rows = model.forward(Batch.of([(new, at, table)], [len(new) - 1]), cache)
        at, new = at + len(new), [int(rows[0].argmax())]
        out += new
    return out


def some_logits(path: Path) -> np.ndarray:
    """Of four ids, for files whose models are compared."""
    return LLM(path, n_threads=1).logits([7, 40, 261, 262])


def written(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, written as GGUF and read back."""
    formats.write(path, checkpoint)
    return formats.read(path)
