"""After many requests, a tenth of them cancelled, everything is as at the start.

Some in the tests; ten thousand with STARCODER_REQUESTS=10000 (`make campaign-engine`).
"""

from __future__ import annotations

import gc
import os
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from starcoder.engine import Engine, Loop, Request
from starcoder.sampling.options import GenerationOptions
from tests.helpers.fake_model import N_CTX, FakeModel

N_REQUESTS = int(os.environ.get("STARCODER_REQUESTS", "1500"))
N_CLIENTS, LONG_SECONDS = 6, 20


def client(loop: Loop, seed: int, n: int, failures: list[str]) -> None:
    """Ask so often, and change one's mind now and then: before, between and after the answers."""
    rng = random.Random(seed)
    for i in range(n):
        prompt = [rng.randrange(48) for _ in range(rng.choice([1, 3, 10, 30]))]
        options = GenerationOptions(
            max_tokens=rng.randrange(6),
            priority=rng.randrange(2),
            salt=rng.choice(["", "x"]),
            max_time_ms=rng.choice([None, None, 10_000]),
        )
        request: Request | None = loop.submit(prompt, options)
        assert request is not None
        if rng.random() < 0.1:
            time.sleep(rng.random() / 1000)
            if i % 2:
                request.cancel()
            request = None  # dropping it ends it too
            continue
        at = 0
        while (event := request.wait(at)) is not None and event.finish_reason is None:
            at += 1
        if event is None or event.finish_reason != "length":
            failures.append(f"{prompt}: {event}")


def run(loop: Loop, n: int) -> list[str]:
    failures: list[str] = []
    threads = [
        threading.Thread(target=client, args=(loop, seed, n // N_CLIENTS, failures))
        for seed in range(N_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def settles(loop: Loop) -> bool:
    """Whether nothing runs, waits or holds blocks, soon."""
    deadline = time.monotonic() + LONG_SECONDS
    while time.monotonic() < deadline:
        stats = loop.stats()
        if not stats.n_running + stats.n_waiting + len(loop._outboxes):
            return stats.n_free_blocks + stats.n_idle_blocks == stats.n_blocks
        time.sleep(0.01)
    return False


def test_memory_blocks_descriptors_and_threads_are_as_at_the_start() -> None:
    model = FakeModel()
    model.batches = deque(maxlen=1)  # type: ignore[assignment]
    engine = Engine(model, n_ctx=N_CTX, n_positions=6 * N_CTX, n_batch=64)
    loop = Loop(engine)
    assert run(loop, N_REQUESTS // 5) == []  # until the cache is full
    assert settles(loop)
    before = used()
    assert run(loop, N_REQUESTS) == []
    assert settles(loop)
    after = used()
    assert not engine._sequences
    assert after[1:] == before[1:], "descriptors, threads"
    assert after[0] - before[0] < N_REQUESTS / 4, "less than an object for every fourth request"


def used() -> tuple[int, int, int]:
    """Objects in memory, open descriptors and threads."""
    gc.collect()
    folder = Path("/proc/self/fd")
    n_open = len(list(folder.iterdir())) if folder.exists() else 0
    return sys.getallocatedblocks(), n_open, threading.active_count()


@pytest.mark.parametrize("end", [Request.cancel, Request.end_if_late], ids=["cancelled", "late"])
def test_who_ends_a_request_beside_the_engine_ends_it_once(end: Callable[[Request], None]) -> None:
    loop, n_ends = Loop(Engine(FakeModel(), n_ctx=N_CTX, n_positions=N_CTX, n_batch=64)), []
    for i in range(50):
        request = loop.submit([i % 40], GenerationOptions(max_tokens=4, max_time_ms=0.1))
        time.sleep(i / 10_000)
        end(request)
        at = 0
        while (event := request.wait(at)) is not None and event.finish_reason is None:
            at += 1
        n_ends.append(event is not None)
        assert request.wait(at + 1) is None
    assert all(n_ends)
