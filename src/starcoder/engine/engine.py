"""Engine: the heartbeat. Each `step()` runs one batch through the model and says what came of it.

The engine works in token ids; text is for `completion`. It starts no thread and keeps no clock but
a stopwatch. What a sequence gets depends on its own tokens alone: neighbors, chunks and order of
arrival change when a token comes, never which.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from collections.abc import Sequence as Ids
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.engine.block_pool import BlockPool
from starcoder.engine.events import EngineStats, Event
from starcoder.engine.scheduler import Scheduler
from starcoder.engine.sequence import Sequence, check_prompt
from starcoder.errors import StarcoderError
from starcoder.model.kv_cache import KVCache
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import Sampler

if TYPE_CHECKING:
    from starcoder.model.models import Model

__all__ = ["Engine"]


class Engine:
    """Runs many sequences at once over one model and one cache.

    Args:
        model: what turns a Batch into logits.
        n_ctx: most tokens a sequence can hold, prompt and output together.
        n_batch: most tokens in one step; longer prompts run in chunks.
        n_parallel: sequences of `n_ctx` tokens that the cache has room for; shorter ones fit in
            greater number, the rest wait.
    """

    def __init__(self, model: Model, *, n_ctx: int, n_batch: int, n_parallel: int) -> None:
        self.n_ctx = n_ctx
        self._model = model
        self._n_batch = n_batch
        self._n_blocks = n_parallel * -(-n_ctx // BLOCK_LEN)
        self._cache = KVCache(model.config, self._n_blocks)
        self._ids = itertools.count()
        self.clear()

    def clear(self) -> None:
        """Forget all sequences, in whatever state a step has left them."""
        self._scheduler = Scheduler(BlockPool(self._n_blocks), self._n_batch)
        self._sequences: dict[int, Sequence] = {}
        self._cancelled: list[int] = []
        self._events: list[Event] = []

    def submit(
        self,
        prompt: Ids[int],
        options: GenerationOptions,
        *,
        stop_ids: Iterable[int] = (),
        wants_logits: bool = False,
    ) -> int:
        """Put a request in line. Its events carry the `id` that is returned.

        Args:
            prompt: token ids, at least one.
            options: how to answer it; `max_tokens` is clamped to what the context has left.
            stop_ids: ids that end the text when they are chosen; they are not part of it.
            wants_logits: give the logits of every prompt token; then nothing is generated.

        Raises:
            InputError: a prompt that is empty or too long, an id that no token has.
        """
        check_prompt(prompt, self.n_ctx, self._model.config.n_vocab)
        room = self.n_ctx - len(prompt)
        sequence = Sequence(
            id=next(self._ids),
            tokens=list(prompt),
            n_prompt=len(prompt),
            max_tokens=0 if wants_logits else min(options.max_tokens, room),
            sampler=Sampler(options),
            stop_ids=frozenset(stop_ids),
            wants_logits=wants_logits,
        )
        self._sequences[sequence.id] = sequence
        self._scheduler.add(sequence)
        if sequence.max_tokens == 0 and not wants_logits:
            self._emit(sequence, "length")
        return sequence.id

    def cancel(self, id: int) -> None:  # noqa: A002 - the field's own word
        """End a request at the next step; nothing happens if it has ended by itself.

        Safe from any thread and from a destructor: it only leaves a note.
        """
        self._cancelled.append(id)

    @property
    def is_idle(self) -> bool:
        """Whether a step would have nothing to do and nothing to report."""
        return not self._sequences and not self._events

    def stats(self) -> EngineStats:
        """How busy the engine is; a request that was cancelled counts until the next step."""
        pool = self._scheduler.pool
        return EngineStats(
            n_running=len(self._scheduler.running),
            n_waiting=len(self._scheduler.waiting),
            n_blocks=pool.n_blocks,
            n_free_blocks=pool.n_free,
        )

    def step(self) -> list[Event]:
        """Run one batch, or report what ended without one.

        May be empty: a chunk in the middle of a prompt brings no event.

        An exception (Ctrl-C, out of memory) leaves every sequence where it was or one token
        further, with its event kept for the next step.
        """
        self._end_cancelled()
        if not self._events:
            chunks = self._scheduler.schedule()
            if chunks:
                self._run(chunks)
        events, self._events = self._events, []
        return events

    # -----------------------------------------------------------------------------------------

    def _run(self, chunks: list[tuple[Sequence, int]]) -> None:
        starts = itertools.accumulate((n for _, n in chunks), initial=0)
        rows = [one.logit_rows(n, at) for (one, n), at in zip(chunks, starts, strict=False)]
        started = time.perf_counter()
        batch = Batch.of([one.chunk(n) for one, n in chunks], list(itertools.chain(*rows)))
        logits = self._model.forward(batch, self._cache)  # (r, n_vocab)
        seconds = time.perf_counter() - started
        for (sequence, n), own in zip(chunks, rows, strict=True):
            self._commit(sequence, n, logits[: len(own)], seconds)
            logits = logits[len(own) :]

    def _commit(
        self, sequence: Sequence, n: int, logits: NDArray[np.float32], seconds: float
    ) -> None:
        """Move a sequence `n` tokens on; `logits` are (r, n_vocab), its own rows."""
        sequence.advance(n, seconds)
        if sequence.wants_logits:
            is_last = sequence.n_left == 0
            self._emit(sequence, "length" if is_last else None, logits=logits)
        elif len(logits):
            self._choose(sequence, logits[0])

    def _choose(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        """Sample the next token of a sequence whose known tokens are all computed."""
        started = time.perf_counter()
        try:
            token = sequence.sampler.sample(logits, sequence.tokens)
        except StarcoderError as error:
            self._emit(sequence, "error", error=error)
            return
        sequence.sample_seconds += time.perf_counter() - started
        if token in sequence.stop_ids:
            self._emit(sequence, "stop")
            return
        sequence.tokens.append(token)
        is_full = sequence.n_generated == sequence.max_tokens
        self._emit(sequence, "length" if is_full else None, token=token)

    def _emit(
        self,
        sequence: Sequence,
        reason: str | None,
        *,
        token: int | None = None,
        logits: NDArray[np.float32] | None = None,
        error: StarcoderError | None = None,
    ) -> None:
        self._events.append(Event(sequence.id, sequence.stats, token, reason, error, logits))
        if reason is not None:
            del self._sequences[sequence.id]
            self._scheduler.finish(sequence)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            sequence = self._sequences.get(self._cancelled.pop())
            if sequence is not None:
                self._emit(sequence, "cancelled")
