"""Engine: the heartbeat. Each `step()` runs one batch through the model and says what came of it.

The engine works in token ids; text lives in `llm`. It starts no thread, and its clock is handed in.
What a sequence gets depends on its own tokens alone: neighbors, chunks, what was in the cache and
order of arrival change when a token comes, never which.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

from starcoder.batch import BLOCK_LEN, Batch
from starcoder.engine.cost import CostModel, work_of
from starcoder.engine.events import EngineStats, Event
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.scheduler import Chunk, Scheduler
from starcoder.engine.sequence import Sequence, check_prompt
from starcoder.errors import MemoryLimitError, StarcoderError
from starcoder.logprobs import TokenLogprobs
from starcoder.options import GenerationOptions
from starcoder.sampler import Constraint, Sampler

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from starcoder.models import Model

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
        self.n_ctx = n_ctx
        self._model, self._clock = model, clock
        self._n_batch, self._max_step_seconds = n_batch, max_step_seconds
        self._n_blocks = -(-max(n_positions, n_ctx) // BLOCK_LEN)
        self._cache = model.new_cache(self._n_blocks)
        self._ids = itertools.count()
        self._cost = CostModel()
        self.clear()

    def clear(self) -> None:
        """Forget all sequences and what they computed, in whatever state a step has left them."""
        self._blocks = KVBlocks(self._n_blocks, self._cache)
        self._scheduler = Scheduler(
            self._blocks,
            self._cost,
            n_batch=self._n_batch,
            max_step_seconds=self._max_step_seconds,
        )
        self._sequences: dict[int, Sequence] = {}
        self._cancelled: list[int] = []
        self._events: list[Event] = []

    def check(self, prompt: Ids[int]) -> None:
        """Whether a prompt can be answered; safe from any thread.

        Raises:
            InputError: a prompt that is empty or too long, an id that no token has.
        """
        check_prompt(prompt, self.n_ctx, self._model.config.n_vocab)

    def new_id(self) -> int:
        """An id that no request has had; safe from any thread."""
        return next(self._ids)

    def submit(
        self,
        prompt: Ids[int],
        options: GenerationOptions,
        *,
        stop_ids: Iterable[int] = (),
        constraint: Constraint | None = None,
        wants_logits: bool = False,
        priority: int = 0,
        salt: bytes = b"",
        id: int | None = None,  # noqa: A002 - the field's own word
    ) -> int:
        """Put a request in line. Its events carry the `id` that is returned.

        Args:
            prompt: token ids, at least one.
            options: how to answer it; `max_tokens` is clamped to what the context has left.
            stop_ids: ids that end the text when they are chosen; they are not part of it.
            constraint: what may be chosen; by default every token.
            wants_logits: give the logits of every prompt token; then nothing is generated.
            priority: the lowest number is the most urgent.
            salt: what was computed is shared with requests of the same salt alone.
            id: from `new_id`.

        Raises:
            InputError: as for `check`.
        """
        self.check(prompt)
        room = self.n_ctx - len(prompt)
        sequence = Sequence(
            id=self.new_id() if id is None else id,
            tokens=list(prompt),
            n_prompt=len(prompt),
            max_tokens=0 if wants_logits else min(options.max_tokens, room),
            sampler=Sampler(options),
            stop_ids=frozenset(stop_ids),
            constraint=constraint,
            wants_logits=wants_logits,
            priority=priority,
            salt=salt,
        )
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)
        if sequence.max_tokens == 0 and not wants_logits:
            self._emit(sequence, "length")
        return sequence.id

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
            n_blocks=self._blocks.pool.n_blocks,
            n_free_blocks=self._blocks.pool.n_free,
            n_idle_blocks=self._blocks.tree.n_evictable,
        )

    def step(self) -> list[Event]:
        """Run one batch, or report what ended without one.

        May be empty: a chunk in the middle of a prompt brings no event. An exception that is none
        of ours (Ctrl-C) leaves every sequence where it was or one token further, with its event
        kept for the next step.
        """
        self._end_cancelled()
        if not self._events:
            chunks = self._scheduler.schedule()
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
                self._emit(chunks[0][0], "error", error=_typed(error))
            return
        start = 0
        for sequence, n in chunks:
            n_rows = len(sequence.logit_rows(n, 0))
            self._commit(sequence, n, logits[start : start + n_rows], seconds)
            start += n_rows

    def _compute(self, chunks: list[Chunk]) -> tuple[NDArray[np.float32], float]:
        """The logits (r, n_vocab) that the sequences of a step need, and its seconds."""
        logit_rows: list[int] = []
        n_tokens = 0
        for sequence, n in chunks:
            logit_rows.extend(sequence.logit_rows(n, n_tokens))
            n_tokens += n
        started = self._clock()
        batch = Batch.of([sequence.chunk(n) for sequence, n in chunks], logit_rows)
        logits = self._model.forward(batch, self._cache)
        seconds = self._clock() - started
        self._cost.saw(work_of((n, sequence.n_computed) for sequence, n in chunks), seconds)
        return logits, seconds

    def _commit(
        self, sequence: Sequence, n: int, logits: NDArray[np.float32], seconds: float
    ) -> None:
        """Move a sequence `n` tokens on; `logits` are (r, n_vocab), its own rows."""
        sequence.advance(n, seconds)
        self._blocks.commit(sequence)
        if sequence.wants_logits:
            sequence.n_heard = sequence.n_computed
            is_last = sequence.n_left == 0
            self._emit(sequence, "length" if is_last else None, logits=logits)
        elif len(logits):
            self._choose(sequence, logits[0])

    def _choose(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        """Sample the next token of a sequence whose known tokens are all computed."""
        started = self._clock()
        try:
            constraint = sequence.constraint
            allowed = None if constraint is None else constraint.allowed()
            is_early = sequence.n_generated < sequence.sampler.options.min_tokens
            banned = sequence.stop_ids if is_early else ()
            token = sequence.sampler.sample(logits, sequence.tokens, allowed, banned)
            if constraint is not None:
                constraint.take(token)
        except Exception as error:
            self._emit(sequence, "error", error=_typed(error))
            return
        sequence.sample_seconds += self._clock() - started
        if token in sequence.stop_ids:
            self._emit(sequence, "stop")
            return
        self._say(sequence, token, logits)

    def _say(self, sequence: Sequence, token: int, logits: NDArray[np.float32]) -> None:
        """Put a token that was chosen behind a sequence, and end it where nothing may follow."""
        sequence.tokens.append(token)
        constraint, n_top = sequence.constraint, sequence.sampler.options.logprobs
        if constraint is not None and constraint.is_in_prompt:
            sequence.n_prompt += 1
        is_over = constraint is not None and constraint.is_over
        is_full = sequence.n_generated == sequence.max_tokens or len(sequence.tokens) == self.n_ctx
        reason = "stop" if is_over else "length" if is_full else None
        logprobs = None if n_top is None else TokenLogprobs.of(logits, token, n_top)
        self._emit(sequence, reason, token=token, logprobs=logprobs)

    def _emit(
        self,
        sequence: Sequence,
        reason: str | None,
        *,
        token: int | None = None,
        logprobs: TokenLogprobs | None = None,
        logits: NDArray[np.float32] | None = None,
        error: StarcoderError | None = None,
    ) -> None:
        stats = sequence.stats
        self._events.append(Event(sequence.id, stats, token, reason, error, logprobs, logits))
        if reason is not None:
            del self._sequences[sequence.id]
            self._scheduler.finish(sequence)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            sequence = self._sequences.get(self._cancelled.pop())
            if sequence is not None:
                self._emit(sequence, "cancelled")


def _typed(error: Exception) -> StarcoderError:
    """An error as users know them."""
    if isinstance(error, StarcoderError):
        return error
    if isinstance(error, MemoryError):
        advice = "choose a smaller batch with -b or n_batch"
        return MemoryLimitError("step", "too little memory", "room for one request", advice)
    made = StarcoderError("step", f"{type(error).__name__}: {error}", "an answer of the model")
    made.__cause__ = error
    return made
