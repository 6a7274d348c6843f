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
    """`b` sequences that bring `n` tokens together.

    The tokens of sequence `s` are rows `row_starts[s]` to `row_starts[s + 1]`. Position `p` of
    sequence `s` lives in block `block_tables[s, p // BLOCK_LEN]` of the key/value cache.

    Not checked here: `Engine.submit` has refused bad ids, and the core refuses arrays that would
    take it out of bounds.
    """

    tokens: NDArray[np.int32]  # (n,) ids
    positions: NDArray[np.int32]  # (n,) place of each token in its sequence
    row_starts: NDArray[np.int32]  # (b + 1,) first row of each sequence, then n
    block_tables: NDArray[np.int32]  # (b, m) cache blocks of each sequence, in order
    logit_rows: NDArray[np.int32]  # (r,) rows whose logits are wanted

    @classmethod
    def of(
        cls,
        chunks: Sequence[tuple[Sequence[int], int, Sequence[int]]],
        logit_rows: Sequence[int],
    ) -> Batch:
        """A batch from one `(tokens, first_position, block_table)` per sequence.

        Of a block table only the blocks up to the last of these tokens are taken.
        """
        tokens: list[int] = []
        positions: list[int] = []
        row_starts, tables = [0], []
        for ids, first, table in chunks:
            tokens += ids
            positions += range(first, first + len(ids))
            row_starts.append(len(tokens))
            tables.append(table[: -(-(first + len(ids)) // BLOCK_LEN)])
        width = max(map(len, tables))
        block_tables = [[*table, *[0] * (width - len(table))] for table in tables]
        arrays = (tokens, positions, row_starts, block_tables, list(logit_rows))
        return cls(*(np.array(array, np.int32) for array in arrays))
