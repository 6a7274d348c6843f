"""One thread owns the engine: nobody waits for a neighbor, for ever, or for what is gone."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from typing import cast

import pytest

from starcoder.completion.plan import Planner
from starcoder.completion.stream import Stream
from starcoder.engine import Engine, Loop
from starcoder.errors import MemoryLimitError, StarcoderError
from starcoder.sampling.options import GenerationOptions
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.fake_model import N_CTX, FakeModel

N_INTERRUPTS = int(os.environ.get("STARCODER_INTERRUPTS", "150"))
LONG_SECONDS = 20  # after which whoever waits is said to wait for ever


class FakeTokenizer:
    class vocab:  # noqa: N801 - an attribute
        end_ids = frozenset({49})
        special_ids: frozenset[int] = frozenset()
        tokens = (b",",) * 100

        @staticmethod
        def find(name: str) -> int | None:
            """It has no special tokens."""
            return None

    def token_bytes(self, token: int) -> bytes:
        return b"%d," % token

    def decode(self, tokens: list[int]) -> str:
        return "".join(f"{token}," for token in tokens)


def make(model: FakeModel | None = None, n_positions: int = 8 * N_CTX) -> Loop:
    engine = Engine(model or FakeModel(), n_ctx=N_CTX, n_positions=n_positions, n_batch=64)
    return Loop(engine)


def stream(loop: Loop, prompt: list[int], n: int = 20, **options: float) -> Stream:
    chosen = GenerationOptions(max_tokens=n, ignore_eos=True, **options)  # type: ignore[arg-type]
    planner = Planner(cast(Tokenizer, FakeTokenizer()), N_CTX)
    return Stream(loop, planner.plan(prompt, chosen))


def ends(*threads: threading.Thread) -> bool:
    deadline = time.monotonic() + LONG_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def quiet(loop: Loop) -> bool:
    """Whether nothing runs, waits or holds blocks, soon."""
    deadline = time.monotonic() + LONG_SECONDS
    while time.monotonic() < deadline:
        stats = loop.stats()
        busy = stats.n_running or stats.n_waiting or loop._outboxes
        if not busy and stats.n_free_blocks + stats.n_idle_blocks == stats.n_blocks:
            return True
        time.sleep(0.01)
    return False


def test_a_reader_ends_when_another_thread_closes_its_stream() -> None:
    loop = make(FakeModel(sleeps=0.02))
    one = stream(loop, [1, 2], 60)
    pieces: list[object] = []
    reader = threading.Thread(target=lambda: pieces.extend(one), daemon=True)
    reader.start()
    while not pieces:
        time.sleep(0.01)
    one.close()
    assert ends(reader)
    assert one.completion.finish_reason == "cancelled"
    assert quiet(loop)


@pytest.mark.parametrize("n_readers", [2, 5])
def test_readers_of_one_stream_share_its_pieces_and_all_end(n_readers: int) -> None:
    loop = make()
    expected = stream(loop, [5, 6], 50).drain().tokens
    one, pieces = stream(loop, [5, 6], 50), list[int | None]()
    readers = [
        threading.Thread(target=lambda: pieces.extend(p.token for p in one), daemon=True)
        for _ in range(n_readers)
    ]
    for reader in readers:
        reader.start()
    assert ends(*readers)
    assert sorted(map(str, pieces)) == sorted(map(str, expected))
    assert one.completion.tokens == expected


def test_handing_in_waits_for_no_step() -> None:
    loop = make(FakeModel(sleeps=0.05))
    big = stream(loop, [3] * 40, 20)
    time.sleep(0.1)  # its first step takes two seconds
    started = time.perf_counter()
    small = stream(loop, [1, 2], 1)
    big.close()
    took = time.perf_counter() - started
    assert loop.stats().n_running == 1, "the step goes on"
    assert took < 1
    assert small.drain().finish_reason == "length"


def test_a_request_ends_of_its_own_lack_of_memory_and_of_no_other() -> None:
    loop = make(FakeModel(most=20))
    small = [stream(loop, [i, 1], 30) for i in range(3)]
    big = stream(loop, [9] * 40)
    with pytest.raises(MemoryLimitError):
        big.drain()
    assert big.completion.finish_reason == "error"
    assert [len(one.drain().tokens) for one in small] == [30] * 3


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_a_step_raises_whoever_waits_is_told(kind: type[BaseException]) -> None:
    loop = make()
    expected = stream(loop, [1]).drain()
    step = loop._engine.step

    def fail() -> None:
        raise kind("a fault")

    loop._engine.step = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(StarcoderError, match=f"{kind.__name__}: a fault"):
        stream(loop, [1]).drain()
    loop._engine.step = step  # type: ignore[method-assign]
    assert stream(loop, [1]).drain().tokens == expected.tokens


def test_a_request_that_cannot_begin_is_told_and_the_next_one_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = make()
    with monkeypatch.context() as patch:
        patch.setattr("starcoder.engine.sequence.Sampler", lambda *_: [][0])
        with pytest.raises(StarcoderError, match="IndexError"):
            stream(loop, [1, 2]).drain()
    assert len(stream(loop, [1, 2]).drain().tokens) == 20


def test_what_a_callers_function_raises_ends_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = make()
    one = stream(loop, [1, 2])
    one.call_on_event(lambda: 1 / 0)
    assert len(one.drain().tokens) == 20
    assert len(stream(loop, [1, 2]).drain().tokens) == 20
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("milliseconds", [1e13, 1e300])
def test_a_time_limit_may_be_longer_than_any_wait(milliseconds: float) -> None:
    assert len(stream(make(), [1, 2], max_time_ms=milliseconds).drain().tokens) == 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_stream_that_a_thread_was_reading_ends_in_a_forked_child() -> None:
    loop = make(FakeModel(sleeps=0.02))
    one = stream(loop, [1, 2], 60)
    reader = threading.Thread(target=one.drain, daemon=True)
    reader.start()
    while not one.completion.tokens:
        time.sleep(0.01)
    child = os.fork()
    if not child:
        signal.alarm(LONG_SECONDS)
        os._exit(0 if one.drain().finish_reason == "cancelled" else 1)
    assert os.waitpid(child, 0)[1] == 0
    one.close()
    assert ends(reader)


def test_closing_ends_all_and_refuses_more() -> None:
    loop = make(FakeModel(sleeps=0.001))
    streams = [stream(loop, [i], 60) for i in range(4)]
    next(streams[0])
    loop.close()
    assert [one.drain().finish_reason for one in streams] == ["cancelled"] * 4
    with pytest.raises(StarcoderError, match="closed"):
        stream(loop, [1])
    loop.close()
    stats = loop.stats()
    assert (stats.n_running, stats.n_waiting, stats.n_free_blocks) == (0, 0, stats.n_blocks)


def test_a_loop_that_is_dropped_takes_its_thread_along() -> None:
    loop = make()
    stream(loop, [1]).drain()
    thread = loop._thread
    assert thread is not None
    assert thread.is_alive()
    del loop
    gc.collect()
    assert ends(thread)


def test_where_no_thread_can_start_whoever_waits_runs_the_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = stream(make(), [1, 2, 3]).drain().tokens

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    loop = make()
    one, other = stream(loop, [1, 2, 3]), stream(loop, [1, 2, 3])
    assert next(one).token == expected[0]
    assert other.drain().tokens == one.drain().tokens == expected


def test_requests_that_are_cancelled_at_random_leave_nothing_behind() -> None:
    loop, rng = make(n_positions=4 * N_CTX), random.Random(1)
    open_streams: list[Stream] = []
    for i in range(600):
        prompt = [rng.randrange(48) for _ in range(rng.randrange(1, 30))]
        open_streams.append(stream(loop, prompt, rng.randrange(10), temperature=1.0, seed=i))
        if len(open_streams) > 6:
            one = open_streams.pop(rng.randrange(6))
            if rng.random() < 0.3:
                one.close()
            elif rng.random() < 0.3:
                next(one, None)  # and it is dropped
            else:
                one.drain()
    open_streams.clear()
    gc.collect()
    assert quiet(loop)
    assert not loop._engine._sequences


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of Unix")
@pytest.mark.parametrize("keeps", [True, False], ids=["exception kept", "exception dropped"])
def test_interrupts_at_random_moments_lose_no_token_and_hang_nobody(keeps: bool) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    loop, rng, kept = make(), random.Random(2), []
    expected = stream(loop, [7, 7], 40, temperature=1.0, seed=3).drain().tokens
    before, n_stopped = signal.signal(signal.SIGALRM, stop), 0
    try:
        for _ in range(N_INTERRUPTS):
            one, seconds = None, rng.uniform(1e-5, 0.004)
            while True:
                try:
                    if seconds:
                        after, seconds = seconds, 0.0
                        signal.setitimer(signal.ITIMER_REAL, after)
                    if one is None:
                        one = stream(loop, [7, 7], 40, temperature=1.0, seed=3)
                    for _ in one:
                        pass
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    break
                except StopError as error:
                    n_stopped += 1
                    if keeps:
                        kept.append(error)
            assert one.completion.tokens == expected
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert n_stopped > N_INTERRUPTS // 8
    del one, kept
    gc.collect()
    assert quiet(loop)
