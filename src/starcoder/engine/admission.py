"""Admission: which sequences have a share of the cache, and who gives theirs back for others.

A request is admitted when there is room for its prompt, the most urgent first; nobody overtakes one
that waits for room. Where room is short, the least urgent gives its blocks back and is computed
again later. A request that begins as one that is being computed waits for that: nothing is computed
twice. What those that run bring to a step is the scheduler's to say.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection
from collections.abc import Sequence as Ids

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.sequence import Sequence, Status

__all__ = ["Admission", "Fit", "as_it_is"]

Fit = Callable[[Sequence], None]


def as_it_is(_: Sequence) -> None:
    """Fit: leave a prompt whole."""


class Admission:
    """The sequences that wait for a share of the blocks, and those that have one."""

    def __init__(self, blocks: KVBlocks) -> None:
        self._blocks = blocks
        self.waiting: list[Sequence] = []  # the most urgent first
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Put a new sequence in line."""
        insort(self.waiting, sequence, key=_urgency)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out; what it has computed stays for others."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._blocks.leave(sequence)
        sequence.status = Status.FINISHED

    def admit(self, fit: Fit = as_it_is) -> None:
        """Let those run for whom there is room; `fit`, which is slow, cuts their prompts."""
        for sequence in list(self.waiting):
            if self._waits_for_another(sequence):
                continue
            fit(sequence)
            if self._waits_for_another(sequence):
                continue
            while self._n_lacking(sequence) > 0:
                if not self.put_off_another(sequence):
                    return
            self._blocks.admit(sequence, most=sequence.n_heard if sequence.wants_logits else None)
            self.waiting.remove(sequence)
            sequence.status = Status.RUNNING
            self.running.append(sequence)

    def put_off_another(self, sequence: Sequence, kept: Collection[Sequence] = ()) -> bool:
        """Take the blocks of the least urgent, if any is less urgent and not `kept`."""
        others = [s for s in self.running if s.urgency > sequence.urgency and s not in kept]
        if not others:
            return False
        last = max(others, key=lambda s: s.urgency)
        self.running.remove(last)
        self._blocks.leave(last)
        last.status = Status.WAITING
        insort(self.waiting, last, key=_urgency)
        return True

    # -----------------------------------------------------------------------------------------

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

    def _waits_for_another(self, sequence: Sequence) -> bool:
        return any(self._is_ahead(other, sequence) for other in self.running)

    def _is_ahead(self, other: Sequence, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute blocks that a waiting one begins with."""
        if other.n_left <= 1 or other.salt != sequence.salt or sequence.wants_logits:
            return False
        if other.priority > sequence.priority:
            return False
        n = _n_common(other.tokens, sequence.tokens) // BLOCK_LEN * BLOCK_LEN
        return other.n_computed < n and self._blocks.n_known(sequence.salt, sequence.tokens) < n


def _urgency(sequence: Sequence) -> tuple[int, int]:
    return sequence.urgency


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
