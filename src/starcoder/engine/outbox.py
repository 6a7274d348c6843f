"""Outbox: the events of one request on their way from the engine's thread to whoever waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from starcoder.engine.events import Event

__all__ = ["Outbox"]

_log = logging.getLogger("starcoder")


class Outbox:
    """Events in the order in which they came. They stay, so an interrupted reader loses none.

    The engine's thread puts events in, and whoever ends the request the last one; any number of
    threads may wait for them. What is put in beside the last event is never read. What a signal's
    handler raises may come between any two lines of a reader: nothing here is taken out, and no
    lock of Python's is held.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.on_event: Callable[[], object] | None = None  # is called in the engine's thread
        self._has_last = False
        self._wakes: SimpleQueue[None] = SimpleQueue()

    @property
    def is_done(self) -> bool:
        """Whether the last event has come."""
        return self._has_last or (bool(self.events) and self.events[-1].finish_reason is not None)

    def put(self, event: Event, *, wakes: bool = True) -> None:
        """Add an event, unless the last one has come; `wakes` whoever waits for it."""
        if self.is_done:
            return
        self.events.append(event)
        self._has_last = self._has_last or event.finish_reason is not None
        if wakes:
            self._wakes.put(None)
            self._call_on_event()

    def _call_on_event(self) -> None:
        """What a caller's function raises is the caller's: the engine goes on for others."""
        try:
            if self.on_event is not None:
                self.on_event()
        except Exception:
            _log.exception("a function that was to be called on an event failed")

    def wait(self, i: int, seconds: float | None = None) -> Event | None:
        """Event number `i`, as soon as it is there; None if there will be none.

        Raises:
            queue.Empty: so many `seconds` went by without any event.
        """
        timeout = None if seconds is None else min(seconds, threading.TIMEOUT_MAX)
        while len(self.events) <= i and not self.is_done:
            self._wakes.get(timeout=timeout)
        if self.is_done:
            self._wakes.put(None)  # for others who wait
        if i >= len(self.events) or (i and self.events[i - 1].finish_reason is not None):
            return None
        return self.events[i]
