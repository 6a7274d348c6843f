"""Engine: the heartbeat. Each `step()` runs one batch through the model and says what came of it.

The engine works in token ids; text is for `completion`. It starts no thread and is handed a clock.
What a sequence gets depends on its own tokens alone: neighbors, chunks, what was in the cache and
order of arrival change when a token comes, never which.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING, Any

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.cost import CostModel, work_of
from starcoder.engine.deadline import Deadlines
from starcoder.engine.events import EngineStats, Event
from starcoder.engine.failure import typed
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.scheduler import Chunk, Scheduler
from starcoder.engine.sequence import How, Sequence, batch_of, check_prompt
from starcoder.sampling.options import GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from starcoder.model.models import Model

__all__ = ["MAX_STEP_SECONDS", "Engine"]

MAX_STEP_SECONDS = 0.25  # what people who watch a text grow do not notice


class Engine:
    """Runs many sequences at once over one model and one cache.

    Args:
        model: what turns a Batch into logits.
        n_ctx: most tokens a sequence can hold, prompt and output together.
        n_positions: tokens that the cache has room for, at least `n_ctx`: of sequences that run,
            and of those that ended, for whoever begins with the same.
        n_batch: most tokens in one step; longer prompts run in chunks.
        max_step_seconds: what a step should take at most, as far as can be foreseen.
        clock: seconds from some moment on.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_positions: int,
        n_batch: int,
        max_step_seconds: float = MAX_STEP_SECONDS,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.n_ctx, self.clock = n_ctx, clock
        self._model, self._n_batch, self._max_step_seconds = model, n_batch, max_step_seconds
        self._n_blocks = -(-max(n_positions, n_ctx) // BLOCK_LEN)
        self.cache = model.new_cache(self._n_blocks)
        self._ids = itertools.count()
        self._cost = CostModel(model.nbytes)
        self.clear()

    def clear(self) -> None:
        """Forget all sequences and what they computed, in whatever state a step has left them."""
        self.blocks = KVBlocks(self._n_blocks, self.cache)
        known = self.blocks, self._cost
        seconds = self._max_step_seconds
        self._scheduler = Scheduler(*known, n_batch=self._n_batch, max_step_seconds=seconds)
        self._deadlines = Deadlines(*known, clock=self.clock, max_step_seconds=seconds)
        self._sequences: dict[int, Sequence] = {}
        self._cancelled: list[int] = []
        self._events: list[Event] = []

    def check(self, prompt: Ids[int]) -> None:
        """Raise an InputError for a prompt that cannot be answered; safe from any thread."""
        check_prompt(prompt, self.n_ctx, self._model.config.n_vocab)

    def new_id(self) -> int:
        """An id that no request has had; safe from any thread."""
        return next(self._ids)

    def submit(
        self,
        prompt: Ids[int],
        options: GenerationOptions,
        id: int | None = None,  # noqa: A002 - the field's own word
        **how: Unpack[How],
    ) -> int:
        """Put a request in line. Its events carry the `id`, from `new_id`, that is returned.

        Raises:
            InputError: a prompt that is empty or too long, an id that no token has.
        """
        self.check(prompt)
        id = self.new_id() if id is None else id  # noqa: A001
        how.setdefault("came", self.clock())
        sequence = self._sequences[id] = Sequence.of(id, prompt, options, self.n_ctx, how)
        self._scheduler.add(sequence)
        if sequence.max_tokens == 0 and not sequence.wants_logits:
            self._emit(sequence, "length")
        return id

    def cancel(self, id: int) -> None:  # noqa: A002
        """End a request at the next step; nothing happens if it has ended by itself."""
        self._cancelled.append(id)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do and nothing to report."""
        return not self._sequences and not self._events

    def stats(self) -> EngineStats:
        """How busy the engine is; a request that was cancelled counts until the next step."""
        return EngineStats(
            n_running=len(self._scheduler.running),
            n_waiting=len(self._scheduler.waiting),
            n_blocks=self.blocks.pool.n_blocks,
            n_free_blocks=self.blocks.pool.n_free,
            n_idle_blocks=self.blocks.tree.n_evictable,
        )

    def step(self) -> list[Event]:
        """Run one batch, or report what ended without one.

        May be empty: a chunk in the middle of a prompt brings no event. An exception that is none
        of ours (Ctrl-C) leaves every sequence where it was or one token further, with its event
        kept for the next step.
        """
        while self._cancelled:
            sequence = self._sequences.get(self._cancelled.pop())
            if sequence is not None:
                self._emit(sequence, "cancelled")
        late, seconds = self._deadlines.look(self._sequences.values(), self._scheduler.running)
        for sequence in late:
            self._emit(sequence, "time")
        if not self._events:
            chunks = self._scheduler.schedule(seconds, self._deadlines.shorten)
            if chunks:
                self._run(chunks)
        events, self._events = self._events, []
        return events

    # -----------------------------------------------------------------------------------------

    def _run(self, chunks: list[Chunk]) -> None:
        """Compute, then move the sequences on. Where that fails, the one that is to blame ends."""
        try:
            logits, seconds = self._compute(chunks)
        except Exception as error:
            if len(chunks) > 1:
                half = len(chunks) // 2
                self._run(chunks[:half])
                self._run(chunks[half:])
            else:
                self._emit(chunks[0][0], "error", error=typed(error))
            return
        start = 0
        for sequence, n in chunks:
            n_rows = len(sequence.logit_rows(n, 0))
            self._commit(sequence, n, logits[start : start + n_rows], seconds)
            start += n_rows

    def _compute(self, chunks: list[Chunk]) -> tuple[NDArray[np.float32], float]:
        """The logits (r, n_vocab) that the sequences of a step need, and its seconds."""
        started = self.clock()
        logits = self._model.forward(batch_of(chunks), self.cache)
        seconds = self.clock() - started
        self._cost.saw(work_of((n, sequence.n_computed) for sequence, n in chunks), seconds)
        return logits, seconds

    def _commit(
        self, sequence: Sequence, n: int, logits: NDArray[np.float32], seconds: float
    ) -> None:
        """Move a sequence `n` tokens on; `logits` are (r, n_vocab), its own rows."""
        sequence.advance(n, seconds)
        self.blocks.commit(sequence)
        if sequence.wants_logits:
            sequence.n_heard = sequence.n_computed
            is_last = sequence.n_left == 0
            self._emit(sequence, "length" if is_last else None, logits=logits)
        elif len(logits):
            self._choose(sequence, logits[0])

    def _choose(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        """Sample the next token of a sequence whose known tokens are all computed."""
        started = self.clock()
        try:
            token = sequence.choose(logits)
        except Exception as error:
            self._emit(sequence, "error", error=typed(error))
            return
        sequence.sample_seconds += self.clock() - started
        if token in sequence.stop_ids:
            self._emit(sequence, "stop")
            return
        reason = sequence.say(token, self.n_ctx)
        logprobs = sequence.logprobs(token, logits)
        self._emit(sequence, reason, token=token, logprobs=logprobs)

    def _emit(self, sequence: Sequence, reason: str | None, **brought: Any) -> None:
        """Tell a request what came of it, in the fields of an Event; with a reason it ends."""
        self._events.append(Event(sequence.id, sequence.stats, finish_reason=reason, **brought))
        if reason is not None:
            del self._sequences[sequence.id]
            self._scheduler.finish(sequence)
