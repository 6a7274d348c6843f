"""Stream: the text of one request as it grows. Desk: many streams over one engine.

Whoever waits for an event runs a step for everybody and puts the others' events in their
inboxes. So streams may be read in turn or from several threads without one blocking another.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Ids
from types import TracebackType

from starcoder.completion.result import Completion, Piece, Timings
from starcoder.core import ops
from starcoder.engine import Engine, EngineStats, Event, RequestStats
from starcoder.errors import MemoryLimitError
from starcoder.sampling.options import GenerationOptions
from starcoder.text.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Desk", "Stream"]


class Desk:
    """Takes requests to the engine and brings each its events.

    A forked child begins with no requests, and so do functions that run at the end of the process:
    earlier requests end there, "cancelled".
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._inboxes: dict[int, deque[Event]] = {}
        _desks.add(self)

    def submit(
        self,
        prompt: Ids[int],
        options: GenerationOptions,
        *,
        stop_ids: Iterable[int] = (),
        wants_logits: bool = False,
    ) -> int:
        """Hand in a request; arguments, id and errors as for `Engine.submit`."""
        with self._lock:
            id_ = self._engine.submit(prompt, options, stop_ids=stop_ids, wants_logits=wants_logits)
            self._inboxes[id_] = deque()
        return id_

    def stats(self) -> EngineStats:
        """How busy the engine is."""
        return self._engine.stats()

    def next_event(self, id: int) -> Event | None:  # noqa: A002
        """Wait for the next event of a request; None if it was cancelled meanwhile.

        Raises:
            MemoryLimitError: no memory for a step.
            StarcoderError: the request failed.
        """
        while (inbox := self._inboxes.get(id)) is not None and not inbox:
            with self._lock:
                if not inbox:
                    self._step()
        if inbox is None:  # by another thread, or this is a forked child
            return None
        event = inbox.popleft()
        if event.finish_reason is not None:
            del self._inboxes[id]
        if event.error is not None:
            raise event.error
        return event

    def cancel(self, id: int) -> None:  # noqa: A002
        """End a request if it has not ended; takes no lock, so a destructor may call it."""
        if self._inboxes.pop(id, None) is not None:
            self._engine.cancel(id)

    def clear(self) -> None:
        """Begin anew, whatever another thread was doing with the engine."""
        self._lock = threading.Lock()
        self._inboxes = {}
        self._engine.clear()

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except MemoryError:
            advice = "choose a smaller batch with -b or n_batch"
            raise MemoryLimitError("step", "not enough memory for one batch", "", advice) from None
        for event in events:
            inbox = self._inboxes.get(event.id)
            if inbox is not None:
                inbox.append(event)


_desks: weakref.WeakSet[Desk] = weakref.WeakSet()


def _clear_desks() -> None:
    """Where only this thread is left: others may have held locks, or been inside a step."""
    for desk in list(_desks):
        desk.clear()


def _end() -> None:
    """At the end of the process: functions that run after this one may still generate."""
    ops.close()
    _clear_desks()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_clear_desks)


class Stream(Iterator[Piece]):
    """The pieces of one answer, made by `LLM.stream`. Closing or dropping it ends the request.

    Attributes:
        options: how the prompt is answered.
        prompt_tokens: how many token ids the prompt has.

    >>> with llm.stream("def ") as stream:  # doctest: +SKIP
    ...     for piece in stream:
    ...         print(piece.text, end="")
    """

    _is_open = False

    def __init__(
        self, desk: Desk, ids: Ids[int], options: GenerationOptions, tokenizer: Tokenizer
    ) -> None:
        self.options = options
        self.prompt_tokens = len(ids)
        self._desk, self._tokenizer, self._decoder = desk, tokenizer, StreamDecoder(tokenizer)
        self._tokens: list[int] = []  # what was read; the engine may be ahead
        self._stats = RequestStats(0, 0)
        self._finish_reason = "cancelled"
        stop_ids = () if options.ignore_eos else tokenizer.vocab.end_ids
        self._id = desk.submit(ids, options, stop_ids=stop_ids)
        self._is_open = True

    def __next__(self) -> Piece:
        if not self._is_open:
            raise StopIteration
        try:
            event = self._desk.next_event(self._id)
        except KeyboardInterrupt:
            raise
        except BaseException:
            self.close()
            raise
        if event is None:
            event = Event(self._id, self._stats, finish_reason="cancelled")
        self._stats = event.stats
        text = ""
        if event.token is not None:
            self._tokens.append(event.token)
            text = self._decoder.add(event.token)
        if event.finish_reason is not None:
            self._is_open, self._finish_reason = False, event.finish_reason
            text += self._decoder.flush()
        return Piece(text, event.token, event.finish_reason)

    @property
    def completion(self) -> Completion:
        """What was read so far; "cancelled" unless the end was reached."""
        return Completion(
            text=self._tokenizer.decode(self._tokens),
            tokens=tuple(self._tokens),
            prompt_tokens=self.prompt_tokens,
            finish_reason=self._finish_reason,
            timings=Timings.of(self._stats),
        )

    def drain(self) -> Completion:
        """Read to the end."""
        deque(self, maxlen=0)
        return self.completion

    def close(self) -> None:
        """End the request; its share of the cache is free for others at their next step."""
        if self._is_open:
            self._is_open = False
            self._desk.cancel(self._id)

    __del__ = close

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
