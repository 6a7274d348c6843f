"""Deadlines: what of a prompt there is time for, how long a step may take, and who ends before it.

Times are foreseen by the cost model, so a request ends before the step that would make it late,
not after. Of a prompt that is too long for its time a part is evaluated: as long as fits, or a
little shorter if most of that is in the cache, as it is when the same file is asked about again.
Whatever was computed stays in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from collections.abc import Sequence as Ids

from starcoder.engine.cost import CostModel, work_of
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.sequence import Sequence, Status, Windows

__all__ = ["Deadlines"]

_GRACE = 0.04  # seconds that a prompt may be late, where foresight was wrong
_MARGIN = 1.15  # times what a prompt is expected to take
_LINE = 16  # tokens of an answer for which its prompt leaves time, if that is less than half of it
_NEAR = 8  # windows on either side of the longest that fits that may be in the cache
_LONG_ENOUGH = 0.75  # of the tokens that fit, for a window that is in the cache


class Deadlines:
    """Keeps the requests of an engine to their times.

    Args:
        blocks: what is in the cache.
        cost: what steps take.
        max_step_seconds: what a step should take at most.
        clock: the engine's.
    """

    def __init__(
        self,
        blocks: KVBlocks,
        cost: CostModel,
        *,
        max_step_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._cost, self._blocks = cost, blocks
        self._max_step_seconds, self._clock = max_step_seconds, clock
        self._running: list[Sequence] = []  # as of the last look

    def look(
        self, sequences: Iterable[Sequence], running: Collection[Sequence]
    ) -> tuple[list[Sequence], float]:
        """Those of the sequences that must end now, and the seconds a step of the others has."""
        late, seconds_left, now = [], math.inf, self._clock()
        self._running = list(running)
        step = self._cost.seconds(work_of(decoding)) if (decoding := _decoding(running)) else 0.0
        for sequence in sequences:
            if sequence.prompt_end < math.inf:
                waits = sequence.status is Status.WAITING
                if now + (step if waits else self._step_with(sequence, running)) >= _end(sequence):
                    late.append(sequence)
                else:
                    seconds_left = min(seconds_left, _end(sequence) - now)
        return late, seconds_left

    def shorten(self, sequence: Sequence) -> None:
        """Choose the part of its prompt that a sequence evaluates, which is about to begin.

        It shares its time with those that ran at the last look. Not for everyone in line at every
        step: a choice takes as long as a step of a small model.
        """
        windows = sequence.windows
        if windows is None or sequence.prompt_end == math.inf or sequence.has_said:
            return
        others, now = self._running, self._clock()
        decoding = _decoding(others)
        n_prompts = 1 + sum(s.n_left > 1 and s.priority <= sequence.priority for s in others)
        room = (self._prompt_end(sequence, now) - now) / n_prompts / _MARGIN

        def seconds(n: int, first: int) -> float:
            took = self._cost.seconds(work_of([(n, first), *decoding]))
            n_steps = max(1, math.ceil(took / self._max_step_seconds))
            return took + (n_steps - 1) * self._cost.seconds(work_of([(1, 0), *decoding]))

        def fresh(i: int) -> float:
            """What a window takes as it is: only what is not in the cache."""
            tokens = windows.window(i)
            n_known = self._blocks.n_known(sequence.salt, tokens)
            return seconds(len(tokens) - n_known, n_known)

        last = len(windows.lengths) - 1
        chosen = last
        if fresh(last) > room:
            longest = _last_within(windows.lengths, lambda n: seconds(n, 0) <= room)
            near = range(max(0, longest - _NEAR), min(last, longest + _NEAR) + 1)
            fitting = {i: took for i in near if (took := fresh(i)) <= room}
            chosen = _best(fitting, windows)
        sequence.tokens = windows.window(chosen)
        sequence.n_skipped = windows.lengths[last] - windows.lengths[chosen]
        sequence.n_prompt = len(sequence.tokens)

    def _step_with(self, sequence: Sequence, running: Collection[Sequence]) -> float:
        """The seconds of a step that brings a running sequence one token further."""
        work = _decoding(other for other in running if other is not sequence)
        return self._cost.seconds(work_of([*work, (1, sequence.n_computed)]))

    def _prompt_end(self, sequence: Sequence, now: float) -> float:
        """When the prompt must be computed, so that there is time for a line of the answer."""
        if sequence.end == math.inf:
            return sequence.prompt_end
        one = self._cost.seconds(work_of([(1, len(sequence.tokens))]))
        answer = min(min(_LINE, sequence.max_tokens) * one, (sequence.end - now) / 2)
        return min(sequence.prompt_end, sequence.end - answer)


def _decoding(running: Iterable[Sequence]) -> list[tuple[int, int]]:
    """What those that are in every step bring to it."""
    return [(1, s.n_computed) for s in running if s.n_left == 1]


def _end(sequence: Sequence) -> float:
    """When a sequence has to end if it has brought nothing, or no more, until then."""
    if sequence.n_generated:
        return sequence.end
    return min(sequence.end, sequence.prompt_end + _GRACE)


def _last_within(lengths: Ids[int], fits: Callable[[int], bool]) -> int:
    """The last of the ascending `lengths` that fits; 0 if none does."""
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(lengths[middle]):
            low = middle
        else:
            high = middle - 1
    return low


def _best(fitting: dict[int, float], windows: Windows) -> int:
    """Of the windows that fit, with their seconds, the longest, or a much quicker one."""
    if not fitting:
        return 0
    longest = max(fitting)
    enough = _LONG_ENOUGH * windows.lengths[longest]
    quickest = min((i for i in fitting if windows.lengths[i] >= enough), key=fitting.__getitem__)
    return quickest if fitting[quickest] < fitting[longest] / 2 else longest
