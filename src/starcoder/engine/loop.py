"""Loop: the thread that owns an engine. Nobody else steps it.

Requests and cancellations come through a queue, and each request has an outbox: so to submit takes
no time, however long a step is, and a step is never interrupted by whoever waits for it. The thread
starts with the first request, and waits when there is nothing to do.

Where no thread can be started (a limit, the end of the process), whoever waits runs the steps.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from collections.abc import Sequence as Ids
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn, TypeVar

from starcoder.core import ops
from starcoder.engine.engine import Engine
from starcoder.engine.events import EngineStats, Event, RequestStats
from starcoder.engine.outbox import Outbox
from starcoder.engine.sequence import How
from starcoder.errors import StarcoderError
from starcoder.sampling.options import GenerationOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Loop", "Request"]

Command = Callable[[], None]
T = TypeVar("T")
_GRACE = 0.02  # seconds after its time at which a request ends without the engine
_LOOK_SECONDS = 1.0  # between two looks whether the loop was closed
_JOIN_SECONDS = 30.0  # that `close` waits for the step that runs


class Request:
    """A request that was handed in: its events, and the way to end it. Dropping it ends it too."""

    def __init__(
        self,
        loop: Loop,
        id: int,  # noqa: A002 - the field's word
        outbox: Outbox,
        end: float | None = None,
    ) -> None:
        self.id, self.outbox = id, outbox
        self._loop, self._end = loop, end

    def wait(self, i: int) -> Event | None:
        """Event number `i`, as soon as it is there; None if there will be none."""
        self._loop.run_here(lambda: len(self.outbox.events) > i or self.outbox.is_done)
        while True:
            try:
                return self.outbox.wait(i, self.seconds_left)
            except Empty:
                self.end_if_late()

    @property
    def seconds_left(self) -> float | None:
        """How long its end may be waited for; None where there is no limit."""
        return None if self._end is None else max(0.0, self._end - self._loop.clock())

    def end_if_late(self) -> None:
        """End it, with "time", if a long step keeps the engine from doing so."""
        if self.seconds_left == 0 and not self.outbox.is_done:
            self.outbox.put(_last_event(self.id, reason="time"))
            self._loop.cancel(self.id)

    def cancel(self) -> None:
        """End it at the next step, if it has not ended. Safe from any thread."""
        if not self.outbox.is_done:
            self._loop.cancel(self.id)
            self.outbox.put(_last_event(self.id))

    def __del__(self) -> None:
        if hasattr(self, "_end"):  # an interrupt may have come before it was made
            self.cancel()


class Loop:
    """Runs the requests of an engine in a thread of its own.

    A forked child begins with none; those of before end there, "cancelled".
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self.clock = engine, engine.clock
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._reset()
        _loops.add(self)

    def submit(
        self,
        prompt: Ids[int],
        options: GenerationOptions,
        **how: Unpack[How],
    ) -> Request:
        """Hand in a request; arguments and errors as for `Engine.submit`, which sets its id.

        Raises:
            StarcoderError: the loop was closed.
        """
        if self._is_closed:
            raise StarcoderError("LLM", "a closed model", "an open one", "make a new LLM")
        self._engine.check(prompt)
        how.setdefault("came", self._engine.clock())
        limit = options.max_time_ms
        end = None if limit is None else how["came"] + limit / 1e3 + _GRACE
        id_, outbox = self._engine.new_id(), Outbox()
        request = Request(self, id_, outbox, end)  # from here on it ends if it is dropped

        def begin() -> None:
            try:
                if not outbox.is_done:
                    self._engine.submit(prompt, options, id_, **how)
            except Exception as error:  # of this request, and no other's
                self._outboxes.pop(id_, None)
                outbox.put(_last_event(id_, error))

        self._outboxes[id_] = outbox
        self._inbox.put(begin)
        self._start()
        return request

    def call(self, function: Callable[[Engine], T]) -> T:
        """Call a function between two steps, with the engine, and wait for what it returns.

        Raises:
            StarcoderError: the loop was closed.
        """
        answers: SimpleQueue[Callable[[], T]] = SimpleQueue()

        def answer() -> None:
            try:
                value = function(self._engine)
                answers.put(lambda: value)
            except Exception as raised:
                error = raised  # whose name outlives the clause
                answers.put(lambda: _raise(error))

        self._inbox.put(answer)
        self._start()
        while not self._is_closed:
            self.run_here(lambda: not answers.empty())
            with contextlib.suppress(Empty):
                return answers.get(timeout=_LOOK_SECONDS)()
        raise StarcoderError("LLM", "a closed model", "an open one", "make a new LLM")

    def cancel(self, id: int) -> None:  # noqa: A002
        """End a request at the next step; nothing happens if it has ended by itself."""

        def end() -> None:
            self._outboxes.pop(id, None)
            self._engine.cancel(id)

        self._inbox.put(end)

    def stats(self) -> EngineStats:
        """How busy the engine is; what was handed in or cancelled just now may not be counted."""
        return self._engine.stats()

    def close(self) -> None:
        """End all requests, "cancelled", and the thread; nothing can be submitted any more."""
        self._is_closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._inbox.put(None)
            if thread is not threading.current_thread():
                thread.join(_JOIN_SECONDS)
                if not thread.is_alive():
                    self._engine.clear()
        self._end_all()

    def run_here(self, is_enough: Callable[[], bool]) -> None:
        """Where there is no thread: run steps until it is enough."""
        while self._thread is None and not self._is_closed and not is_enough():
            with self._stepping:
                if not is_enough():
                    self._turn()

    # -----------------------------------------------------------------------------------------

    def _reset(self) -> None:
        """Begin anew, whatever another thread was doing with the engine."""
        self._inbox: SimpleQueue[Command | None] = SimpleQueue()
        self._outboxes: dict[int, Outbox] = {}
        self._thread = None
        self._starting, self._stepping = threading.Lock(), threading.Lock()
        self._engine.clear()
        weakref.finalize(self, self._inbox.put, None)

    def _start(self) -> None:
        if self._thread is None and not _is_ending:
            with self._starting, contextlib.suppress(RuntimeError):  # there can be no thread
                if self._thread is None:
                    to_self = weakref.ref(self)
                    thread = threading.Thread(target=_run, args=(to_self, self._inbox), daemon=True)
                    thread.name = "starcoder"
                    thread.start()
                    self._thread = thread

    def _turn(self, first: Command | None = None) -> bool:
        """Do what came in, the `first` of it before, and a step; False if it is time to end.

        Whatever goes wrong, whoever waits is told, and the thread goes on for the next request.
        """
        # Ctrl-C is for whoever steps here; in a thread of its own, nobody else would hear of it.
        faults = Exception if self._thread is None else BaseException
        try:
            return self._work(first)
        except faults as error:
            self._engine.clear()
            self._end_all(error)
            return True

    def _work(self, command: Command | None) -> bool:
        if command is not None:
            command()
        with contextlib.suppress(Empty):
            while True:
                command = self._inbox.get_nowait()
                if command is None:
                    return False
                command()
        for event in self._engine.step():
            outbox = self._outboxes.get(event.id)
            if outbox is not None:
                if event.finish_reason is not None:
                    del self._outboxes[event.id]
                outbox.put(event)
        return True

    def _end_all(self, error: BaseException | None = None, *, wakes: bool = True) -> None:
        """Tell all who wait that their requests are gone, or, not waking them, who come later."""
        outboxes, self._outboxes = self._outboxes, {}
        for id_, outbox in outboxes.items():
            outbox.put(_last_event(id_, error), wakes=wakes)


def _run(to_loop: weakref.ref[Loop], inbox: SimpleQueue[Command | None]) -> None:
    """The thread of a loop. It does not keep a loop that nobody else has."""
    command: Command | None = None
    while True:
        loop = to_loop()
        if loop is None or loop._inbox is not inbox or not loop._turn(command):
            return
        is_idle = loop._engine.is_idle
        del loop
        command = None
        if is_idle:
            command = inbox.get()
            if command is None:
                return


def _last_event(
    id: int,  # noqa: A002 - the field's word
    error: BaseException | None = None,
    reason: str = "cancelled",
) -> Event:
    if error is None:
        return Event(id, RequestStats(0, 0, 0), finish_reason=reason)
    found = f"{type(error).__name__}: {error}"
    made = StarcoderError("engine", found, "no fault of ours", "please report it")
    return Event(id, RequestStats(0, 0, 0), finish_reason="error", error=made)


def _raise(error: Exception) -> NoReturn:
    raise error


# ---- fork and the end of the process -------------------------------------------------------------

_loops: weakref.WeakSet[Loop] = weakref.WeakSet()
_is_ending = False


def _begin_anew(*, wakes: bool = True) -> None:
    """Where only this thread is left: others may have held locks, or been inside a step."""
    for loop in list(_loops):
        loop._end_all(wakes=wakes)
        loop._reset()


def _end() -> None:
    """At the end of the process: functions that run after this one may still generate.

    Threads that wait for an event wait for ever, as those do that are inside a step.
    """
    global _is_ending
    _is_ending = True
    ops.close()
    _begin_anew(wakes=False)


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
