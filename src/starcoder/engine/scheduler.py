"""Scheduler: which sequences run next, and with how many tokens. Bookkeeping over ints, no arrays.

A sequence is admitted once the cache has room for its longest possible length, so none is ever
thrown out halfway. First come, first served: no request overtakes a big one that waits.
"""

from __future__ import annotations

from collections import deque

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.block_pool import BlockPool
from starcoder.engine.sequence import Sequence, Status

__all__ = ["Scheduler"]


class Scheduler:
    """Keeps the waiting and the running sequences.

    Args:
        pool: the blocks of the cache.
        n_batch: most tokens in one step; a longer prompt runs in chunks.
    """

    def __init__(self, pool: BlockPool, n_batch: int) -> None:
        self.pool = pool
        self.n_batch = n_batch
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence at the end of the line."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out and free its blocks."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self.pool.free(sequence.block_table)
        sequence.block_table = []
        sequence.status = Status.FINISHED

    def schedule(self) -> list[tuple[Sequence, int]]:
        """The sequences of the next step, each with the number of tokens it brings.

        Sequences with one token to go come first, so that a long prompt cannot crowd them out of
        a step; prompts share the rest of the budget, oldest first.
        """
        self._admit()
        ready = sorted(self.running, key=lambda sequence: sequence.n_left > 1)
        chunks, budget = [], self.n_batch
        for sequence in ready:
            n = min(sequence.n_left, budget)
            if n == 0:
                break
            chunks.append((sequence, n))
            budget -= n
        return chunks

    def _admit(self) -> None:
        while self.waiting:
            n_blocks = _n_blocks(self.waiting[0].max_len)
            if not self.pool.can_allocate(n_blocks):
                return
            sequence = self.waiting.popleft()
            sequence.block_table = self.pool.allocate(n_blocks)
            sequence.status = Status.RUNNING
            self.running.append(sequence)


def _n_blocks(n_tokens: int) -> int:
    return -(-n_tokens // BLOCK_LEN)
