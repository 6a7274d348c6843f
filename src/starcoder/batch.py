"""Batch: the door between serving and maths. One ragged batch of token ids, and where they stand.

A sequence may bring a whole prompt, a chunk of one, or a single token; nothing above the kernels
treats these apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_LEN", "Batch"]

BLOCK_LEN = 16  # positions in one block of the key/value cache: one vector of keys in the kernels


@dataclass(frozen=True, slots=True)
class Batch:
    """`b` sequences that bring `n` tokens together; checked when made.

    The tokens of sequence `s` are rows `row_starts[s]` to `row_starts[s + 1]`. Position `p` of
    sequence `s` lives in block `block_tables[s, p // BLOCK_LEN]` of the key/value cache.

    Raises:
        ValueError: arrays that do not fit each other.
    """

    tokens: NDArray[np.int32]  # (n,) ids
    positions: NDArray[np.int32]  # (n,) place of each token in its sequence
    row_starts: NDArray[np.int32]  # (b + 1,) first row of each sequence, then n
    block_tables: NDArray[np.int32]  # (b, m) cache blocks of each sequence, in order
    logit_rows: NDArray[np.int32]  # (r,) rows whose logits are wanted

    def __post_init__(self) -> None:
        n, starts = len(self.tokens), self.row_starts
        if len(self.positions) != n or len(starts) != len(self.block_tables) + 1:
            raise ValueError("batch: one position per token and one block table per sequence")
        if starts[0] != 0 or starts[-1] != n or bool(np.any(np.diff(starts) < 1)):
            raise ValueError(f"batch: row_starts must rise from 0 to {n}, found {starts.tolist()}")
        if n and int(self.positions.max()) >= self.block_tables.shape[1] * BLOCK_LEN:
            raise ValueError("batch: a position lies beyond its block table")
        if bool(np.any((self.logit_rows < 0) | (self.logit_rows >= n))):
            raise ValueError(f"batch: logit_rows must lie in 0 to {n - 1}")

    @classmethod
    def of(
        cls,
        chunks: Sequence[tuple[Sequence[int], int, Sequence[int]]],
        logit_rows: Sequence[int],
    ) -> Batch:
        """A batch from one `(tokens, first_position, block_table)` per sequence."""
        width = max(len(table) for _, _, table in chunks)
        tables = np.zeros((len(chunks), width), np.int32)
        for row, (_, _, table) in zip(tables, chunks, strict=True):
            row[: len(table)] = table
        counts = [len(tokens) for tokens, _, _ in chunks]
        return cls(
            tokens=np.fromiter((t for ids, _, _ in chunks for t in ids), np.int32, sum(counts)),
            positions=np.concatenate(
                [np.arange(p, p + len(ids), dtype=np.int32) for ids, p, _ in chunks]
            ),
            row_starts=np.cumsum([0, *counts], dtype=np.int32),
            block_tables=tables,
            logit_rows=np.asarray(logit_rows, np.int32),
        )
