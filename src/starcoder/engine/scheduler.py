"""Scheduler: which sequences run next, and with how many tokens. Bookkeeping over ints, no arrays.

Whoever is decoding is in every step. Prompts run in chunks beside them, cut so that the step takes
no longer than `max_step_seconds`: the most urgent first, and those of one priority in turn. A
request is admitted when there is room for its prompt, and grows block by block; where room is
short, the least urgent gives its blocks back and is computed again later. A request that begins as
one that is being computed waits for that: nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

from starcoder.batch import BLOCK_LEN
from starcoder.engine.cost import CostModel
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.sequence import Sequence, Status

__all__ = ["Scheduler"]

_FEWEST = 16  # tokens of a prompt in a step, however long that takes

Chunk = tuple[Sequence, int]


class Scheduler:
    """Keeps the waiting and the running sequences.

    Args:
        blocks: the cache's blocks.
        cost: what steps take.
        n_batch: most tokens in one step.
        max_step_seconds: what a step should take at most.
    """

    def __init__(
        self, blocks: KVBlocks, cost: CostModel, *, n_batch: int, max_step_seconds: float
    ) -> None:
        self._blocks, self._cost = blocks, cost
        self._n_batch, self._max_seconds = n_batch, max_step_seconds
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._turn = 0

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out; what it has computed stays for others."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._blocks.leave(sequence)
        sequence.status = Status.FINISHED

    def schedule(self) -> list[Chunk]:
        """The sequences of the next step, each with the number of tokens it brings."""
        self._turn += 1
        self._admit()
        chunks: list[Chunk] = []
        in_turn = sorted(self.running, key=lambda s: (s.priority, s.last_turn, s.id))
        for sequence in in_turn:
            if sequence.n_left == 1:
                self._choose(sequence, 1, chunks)
        has_prompt = False
        for sequence in in_turn:
            if sequence.n_left > 1 and sequence.status is Status.RUNNING:
                n = self._n_fitting(sequence, chunks)
                if not has_prompt:
                    n = max(n, _FEWEST)
                has_prompt |= self._choose(sequence, n, chunks)
        return chunks

    # -----------------------------------------------------------------------------------------

    def _choose(self, sequence: Sequence, n: int, chunks: list[Chunk]) -> bool:
        """Put the next `n` tokens of a sequence in a step, or fewer, if there is room for any."""
        n = min(n, sequence.n_left, self._n_batch - sum(n for _, n in chunks))
        if n <= 0 or sequence.status is not Status.RUNNING:
            return False
        n_more = sequence.n_prompt + sequence.max_tokens - sequence.n_computed - n
        while not self._blocks.grow(sequence, sequence.n_computed + n, n_more):
            if not self._put_off_another(sequence, chunks):
                return False
        sequence.last_turn = self._turn
        chunks.append((sequence, n))
        return True

    def _n_fitting(self, sequence: Sequence, chunks: list[Chunk]) -> int:
        others = [(n, s.n_computed) for s, n in chunks]
        most = min(sequence.n_left, self._n_batch)
        return self._cost.most_tokens(others, sequence.n_computed, self._max_seconds, most)

    def _put_off_another(self, sequence: Sequence, chunks: list[Chunk]) -> bool:
        """Take the blocks of the least urgent, if any is less urgent and not in the step."""
        chosen = {s.id for s, _ in chunks}
        others = [s for s in self.running if s.id not in chosen and s.urgency > sequence.urgency]
        if not others:
            return False
        last = max(others, key=lambda s: s.urgency)
        self.running.remove(last)
        self._blocks.leave(last)
        last.status = Status.WAITING
        self.waiting.append(last)
        return True

    # ---- admission --------------------------------------------------------------------------

    def _admit(self) -> None:
        if not self.waiting:
            return
        self.waiting.sort(key=lambda s: s.urgency)
        for sequence in list(self.waiting):
            if any(self._is_ahead(other, sequence) for other in self.running):
                continue
            while self._n_lacking(sequence) > 0:
                if not self._put_off_another(sequence, []):
                    return  # nobody overtakes the one that waits for room
            self._blocks.admit(sequence, most=sequence.n_heard if sequence.wants_logits else None)
            self.waiting.remove(sequence)
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def _n_lacking(self, sequence: Sequence) -> int:
        """Blocks that are lacking for the prompts that run and this one, with one more for each."""
        wanted = sum(_n_blocks(s) - len(s.block_table) for s in (*self.running, sequence))
        if self.running:
            wanted += len(self.running)
        n_known = self._blocks.n_known(sequence.salt, sequence.tokens)
        return wanted - n_known // BLOCK_LEN - self._n_available(sequence)

    def _n_available(self, sequence: Sequence) -> int:
        """Blocks that can be had without those that the sequence would stand on itself."""
        return self._blocks.n_available - self._blocks.n_idle_on_path(
            sequence.salt, sequence.tokens
        )

    def _is_ahead(self, other: Sequence, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute blocks that a waiting one begins with."""
        if other.n_left <= 1 or other.salt != sequence.salt or sequence.wants_logits:
            return False
        if other.priority > sequence.priority:
            return False
        n = _n_common(other.tokens, sequence.tokens) // BLOCK_LEN * BLOCK_LEN
        return other.n_computed < n and self._blocks.n_known(sequence.salt, sequence.tokens) < n


def _n_blocks(sequence: Sequence) -> int:
    return -(-len(sequence.tokens) // BLOCK_LEN)


def _n_common(a: Ids[int], b: Ids[int]) -> int:
    """How many tokens two sequences have in common at their beginning; halving, on slices."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
