"""What tests of attention share: caches of both types, blocks in disorder, some rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from starcoder.core.batch import Batch

__all__ = ["HEADS", "KV_TYPES", "empty_cache", "shuffled_blocks", "some_rows", "tolerance"]

HEADS = [(1, 1, 8), (4, 1, 64), (6, 2, 20), (12, 12, 16), (19, 1, 128)]
KV_TYPES = pytest.mark.parametrize("kv", [np.float16, np.uint16], ids=["f16", "bf16"])


def empty_cache(
    n_blocks: int, n_kv_heads: int, head_dim: int, kv: type[np.generic] = np.float16
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of one layer, as `operations.store_kv` wants them."""
    width = -(-head_dim // 16) * 16
    keys = np.zeros((n_blocks, n_kv_heads, width, 16), kv)
    return keys, np.zeros((n_blocks, n_kv_heads, 16, width), kv)


def shuffled_blocks(n: int, n_blocks: int, seed: int = 0) -> list[int]:
    """A block table for n positions, out of order."""
    return np.random.default_rng(seed).permutation(n_blocks)[: -(-n // 16)].tolist()


def some_rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """These rows of a batch of one sequence; the twins are too slow for all of them."""
    return Batch(
        tokens=batch.tokens[rows],
        positions=batch.positions[rows],
        row_starts=np.array([0, len(rows)], np.int32),
        block_tables=batch.block_tables,
        logit_rows=np.array([], np.int32),
    )


def tolerance(kv: type) -> float:
    """A weight between two numbers of bf16 may become either: the last bits of exp differ."""
    return 1e-6 if kv is np.float16 else 1e-4
