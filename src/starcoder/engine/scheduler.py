"""Scheduler: which sequences run next, and with how many tokens. Bookkeeping over ints, no arrays.

Whoever is decoding is in every step. Prompts run in chunks beside them, cut so that the step takes
no longer than it should: the most urgent first, and those of one priority in turn. Beside the more
urgent, no more tokens of the less urgent run than cost next to nothing. Which sequences run at all
is up to `admission`; a sequence grows block by block, and where there is no room left the least
urgent gives its blocks back.
"""

from __future__ import annotations

import math

from starcoder.engine.admission import Admission, Fit, as_it_is
from starcoder.engine.cost import FEW, CostModel
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.sequence import Sequence, Status

__all__ = ["Chunk", "Scheduler"]

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
        self._admission = Admission(blocks)
        self.waiting, self.running = self._admission.waiting, self._admission.running
        self.add, self.finish = self._admission.add, self._admission.finish
        self._turn = 0

    def schedule(self, within: float = math.inf, fit: Fit = as_it_is) -> list[Chunk]:
        """The sequences of the next step, each with the number of tokens it brings.

        Args:
            within: seconds after which somebody would be late.
            fit: cuts the prompt of one that is about to be admitted to its time.
        """
        self._turn += 1
        self._admission.admit(fit)
        chunks: list[Chunk] = []
        in_turn = sorted(self.running, key=lambda s: (s.priority, s.last_turn, s.id))
        for sequence in in_turn:
            if sequence.n_left == 1:
                self._choose(sequence, 1, chunks)
        has_prompt = False
        for sequence in in_turn:
            if sequence.n_left > 1 and sequence.status is Status.RUNNING:
                n = self._n_fitting(sequence, chunks, min(within, self._max_seconds))
                if any(other.priority < sequence.priority for other, _ in chunks):
                    n = FEW - sum(n for _, n in chunks)  # they ride along, and delay nobody
                elif not has_prompt:
                    n = max(n, _FEWEST if within == math.inf else not chunks)
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
            if not self._admission.put_off_another(sequence, [s for s, _ in chunks]):
                return False
        sequence.last_turn = self._turn
        chunks.append((sequence, n))
        return True

    def _n_fitting(self, sequence: Sequence, chunks: list[Chunk], seconds: float) -> int:
        others = [(n, s.n_computed) for s, n in chunks]
        most = min(sequence.n_left, self._n_batch)
        return self._cost.most_tokens(others, sequence.n_computed, seconds, most)
