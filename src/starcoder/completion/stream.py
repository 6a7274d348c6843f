"""Stream: the text of one request as it grows, a piece at a time, for whoever waits."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType

from starcoder.completion.lines import WholeLines
from starcoder.completion.plan import Plan
from starcoder.completion.result import Completion, Piece, Timings
from starcoder.engine import Event, Loop, RequestStats

__all__ = ["Answer", "Stream"]


class Answer:
    """What was read of a request's events, as text: pieces in order, and all of it.

    Nothing is lost where a signal's handler raises between two lines: an event counts as read when
    its piece is made, and what is known of it is made again of the events.

    Args:
        events: those of the request, which grow.
        plan: what it was asked for with.
    """

    def __init__(self, events: list[Event], plan: Plan) -> None:
        self.n_read = 0  # events
        self._events, self._plan = events, plan
        self._reader: _Reader | None = None

    @property
    def is_done(self) -> bool:
        """Whether the last event was read."""
        return self.n_read > 0 and self._events[self.n_read - 1].finish_reason is not None

    def read(self) -> Piece:
        """The piece of the next event, which has come.

        Raises:
            StarcoderError: the request failed.
        """
        event = self._events[self.n_read]
        if event.error is not None:
            self.n_read += 1
            raise event.error
        reader, self._reader = self._reader, None  # until this piece is made
        if reader is None:
            reader = _Reader(self._plan)
            for earlier in self._events[: self.n_read]:
                reader.piece(earlier)
        piece = reader.piece(event)
        self._reader = reader
        self.n_read += 1
        return piece

    def completion(self) -> Completion:
        """All that was read; "cancelled" unless the end was."""
        events, reader = self._events[: self.n_read], _Reader(self._plan)
        pieces = list(map(reader.piece, events))
        reason = (pieces[-1].finish_reason if pieces else None) or "cancelled"
        rest = "" if reason == "time" else reader.flush()
        if reason == "time":  # what has no time left ends with a line
            del pieces[max((i for i, piece in enumerate(pieces, 1) if piece.text), default=0) :]
        stats = events[-1].stats if events else RequestStats(0, 0, 0)
        logprobs = tuple(piece.logprobs for piece in pieces if piece.logprobs is not None)
        return Completion(
            text="".join(piece.text for piece in pieces) + rest,
            tokens=tuple(piece.token for piece in pieces if piece.token is not None),
            prompt_tokens=self._plan.n_prompt,
            cached_tokens=stats.cached_tokens,
            finish_reason=reason,
            timings=Timings.of(stats),
            logprobs=None if self._plan.options.logprobs is None else logprobs,
        )


class _Reader:
    """Makes pieces of the events of one request."""

    def __init__(self, plan: Plan) -> None:
        self._text = plan.new_text()
        self._shown = self._text if plan.options.max_time_ms is None else WholeLines(self._text)

    def piece(self, event: Event) -> Piece:
        """The next piece; a token that only says the prompt's end again is none."""
        text = "" if event.token is None else self._shown.add(event.token)
        if self._text.is_over or event.finish_reason not in (None, "time"):
            text += self.flush()
        reason = "stop" if self._text.is_over else event.finish_reason
        if self._text.is_in_prompt:
            return Piece(text, None, reason)
        return Piece(text, event.token, reason, event.logprobs)

    def flush(self) -> str:
        """What is left where the answer ends by itself."""
        return self._shown.flush()


class Stream(Iterator[Piece]):
    """The pieces of one answer, made by `LLM.stream`. Closing or dropping it ends the request.

    Several threads may read it: each piece goes to one of them.

    Attributes:
        options: what the answer was asked for with.
        prompt_tokens: how many token ids the prompt has.

    >>> with llm.stream("def ") as stream:  # doctest: +SKIP
    ...     for piece in stream:
    ...         print(piece.text, end="")
    """

    def __init__(self, loop: Loop, plan: Plan) -> None:
        self.options, self.prompt_tokens = plan.options, plan.n_prompt
        self._reading, self._is_open = threading.RLock(), True
        _streams.add(self)
        self._request = loop.submit(
            plan.ids,
            plan.options,
            stop_ids=plan.stop_ids,
            constraint=plan.constraint,
            windows=plan.windows,
        )
        self._answer = Answer(self._request.outbox.events, plan)

    def __next__(self) -> Piece:
        with self._reading:
            if self._is_open and not self._answer.is_done:
                event = self._request.wait(self._answer.n_read)
                if self._is_open and event is not None:  # it may have been closed meanwhile
                    return self._answer.read()
            raise StopIteration

    @property
    def seconds_left(self) -> float | None:
        """How long the end may be waited for; None where there is no limit."""
        return self._request.seconds_left

    def end_if_late(self) -> None:
        """End the request, with "time", if it is past its time whatever the engine is doing."""
        self._request.end_if_late()

    @property
    def has_piece(self) -> bool:
        """Whether the next piece, or the end, can be read without waiting."""
        outbox = self._request.outbox
        return not self._is_open or outbox.is_done or len(outbox.events) > self._answer.n_read

    def call_on_event(self, function: Callable[[], object]) -> None:
        """Have a function called, in the engine's thread, whenever something can be read."""
        self._request.outbox.on_event = function

    @property
    def completion(self) -> Completion:
        """What was read so far; "cancelled" unless the end was reached."""
        return self._answer.completion()

    def drain(self) -> Completion:
        """Read to the end."""
        deque(self, maxlen=0)
        return self.completion

    def close(self) -> None:
        """End the request; its share of the cache is free for others at their next step."""
        self._is_open = False
        self._request.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


# ---- fork ----------------------------------------------------------------------------------------

_streams: weakref.WeakSet[Stream] = weakref.WeakSet()


def _forget_readers() -> None:
    """In a forked child: a thread that was reading is not there to let the next one in."""
    for stream in list(_streams):
        stream._reading = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_readers)
