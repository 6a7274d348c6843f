"""Stream: the text of one request as it grows, a piece at a time, for whoever waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Ids
from types import TracebackType

from starcoder.completion import Completion, Piece, Timings
from starcoder.engine import Event, Loop, RequestStats
from starcoder.heal import Healing
from starcoder.lines import Decoder, WholeLines
from starcoder.options import GenerationOptions
from starcoder.tokenizer import StreamDecoder, Tokenizer
from starcoder.windows import PromptWindows

__all__ = ["Answer", "Stream"]


class Answer:
    """What was read of a request's events, as text: pieces in order, and all of it.

    Nothing is lost where a signal's handler raises between two lines: an event counts as read when
    its piece is made, and what is known of it is made again of the events.

    Args:
        events: those of the request, which grow.
        new_decoder: makes what turns its tokens into text.
    """

    def __init__(self, events: list[Event], new_decoder: Callable[[], Decoder]) -> None:
        self.n_read = 0  # events
        self._events, self._new_decoder = events, new_decoder
        self._decoder: Decoder | None = None

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
        decoder, self._decoder = self._decoder, None  # until this piece is made
        if decoder is None:
            decoder = self._new_decoder()
            for token in self.tokens:
                decoder.add(token)
        text = "" if event.token is None else decoder.add(event.token)
        if event.finish_reason not in (None, "time"):  # what has no time left ends with a line
            text += decoder.flush()
        piece = Piece(text, event.token, event.finish_reason)
        self._decoder = decoder
        self.n_read += 1
        return piece

    @property
    def tokens(self) -> list[int]:
        """The ids of what was read."""
        events = self._events[: self.n_read]
        return [event.token for event in events if event.token is not None]

    @property
    def finish_reason(self) -> str:
        """How it ended; "cancelled" unless the end was read."""
        reason = self._events[self.n_read - 1].finish_reason if self.n_read else None
        return reason or "cancelled"

    @property
    def stats(self) -> RequestStats:
        """What it has cost."""
        return self._events[self.n_read - 1].stats if self.n_read else RequestStats(0, 0, 0)

    def completion(self, prompt_tokens: int) -> Completion:
        """All that was read."""
        tokens, decoder = self.tokens, self._new_decoder()
        texts = [decoder.add(token) for token in tokens]
        if self.finish_reason == "time":
            n = max((i for i, text in enumerate(texts, 1) if text), default=0)
            del texts[n:], tokens[n:]
        else:
            texts.append(decoder.flush())
        return Completion(
            text="".join(texts),
            tokens=tuple(tokens),
            prompt_tokens=prompt_tokens,
            cached_tokens=self.stats.cached_tokens,
            finish_reason=self.finish_reason,
            timings=Timings.of(self.stats),
        )


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

    def __init__(
        self,
        loop: Loop,
        ids: Ids[int],
        options: GenerationOptions,
        tokenizer: Tokenizer,
        healing: Healing | None = None,
    ) -> None:
        self.options = options
        self.prompt_tokens = len(ids)
        self._reading, self._is_open = threading.RLock(), True
        stop_ids = () if options.ignore_eos else tokenizer.vocab.end_ids
        is_timed = options.max_prompt_ms is not None or options.max_time_ms is not None
        windows = PromptWindows(ids, tokenizer.vocab) if is_timed else None
        self._request = loop.submit(
            ids, options, stop_ids=stop_ids, constraint=healing, windows=windows
        )
        n_skipped = 0 if healing is None else healing.n_bytes  # which are the prompt's

        def new_decoder() -> Decoder:
            decoder = StreamDecoder(tokenizer, n_skipped)
            return decoder if options.max_time_ms is None else WholeLines(decoder)

        self._answer = Answer(self._request.outbox.events, new_decoder)

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
        return self._answer.completion(self.prompt_tokens)

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
