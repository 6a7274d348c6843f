"""Streams: many over one engine, read in turn, from threads, halfway, or not at all."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from starcoder import LLM
from starcoder.engine import Engine, Event

PROMPTS = ["def fibonacci(n):\n", "class A:", "x = [1, 2, 3]\nfor y in x:\n    print(", "{"]


@pytest.fixture(scope="module")
def llm(data: Path) -> LLM:
    return LLM(data / "gpt_bigcode-q4_0.gguf")


def n_free(llm: LLM) -> int:
    """Cache blocks that nobody holds after a step, which ends what was cancelled."""
    llm.generate([0], max_tokens=1)
    stats = llm.stats()
    return stats.n_free_blocks + stats.n_idle_blocks


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 5}])
def test_a_stream_is_the_completion_in_pieces(llm: LLM, options: dict[str, Any]) -> None:
    whole = llm.generate("def f", max_tokens=60, heal=False, **options)
    pieces = list(llm.stream("def f", max_tokens=60, heal=False, **options))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert tuple(piece.token for piece in pieces) == whole.tokens
    assert [piece.finish_reason for piece in pieces] == [None] * 59 + ["length"]


def test_streams_may_be_read_in_turn(llm: LLM) -> None:
    streams = [llm.stream(prompt, max_tokens=12, heal=False) for prompt in PROMPTS]
    turns = list(zip(*streams, strict=True))  # one piece of each stream, then the next of each
    texts = ["".join(turn[i].text for turn in turns) for i in range(len(PROMPTS))]
    assert texts == [llm.generate(prompt, max_tokens=12, heal=False).text for prompt in PROMPTS]


def test_threads_may_share_an_llm(llm: LLM) -> None:
    expected = [llm.generate(prompt, max_tokens=30).tokens for prompt in PROMPTS]
    found: dict[int, tuple[int, ...]] = {}

    def ask(i: int) -> None:
        found[i] = llm.generate(PROMPTS[i], max_tokens=30).tokens

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(len(PROMPTS))] == expected


def test_closing_a_stream_cancels_and_keeps_what_was_read(llm: LLM) -> None:
    n = n_free(llm)
    with llm.stream("def f(", max_tokens=100, heal=False) as stream:
        tokens = [next(stream).token for _ in range(5)]
    assert (stream.completion.tokens, stream.completion.finish_reason) == (
        tuple(tokens),
        "cancelled",
    )
    assert list(stream) == []
    assert n_free(llm) == n


def test_a_stream_that_is_dropped_gives_its_memory_back(llm: LLM) -> None:
    n = n_free(llm)
    for _ in llm.stream("def f(", max_tokens=100):
        break
    llm.stream("never read")
    gc.collect()
    assert n_free(llm) == n


def test_an_interrupted_stream_can_go_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)  # so that this thread runs the steps
    llm = LLM(data / "gpt_bigcode-q4_0.gguf")
    expected = llm.generate("def f(", max_tokens=10).tokens
    stream = llm.stream("def f(", max_tokens=10)
    step = Engine.step
    interrupts = iter([True, False, False, True])

    def interrupted(engine: Engine) -> list[Event]:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return step(engine)

    monkeypatch.setattr(Engine, "step", interrupted)
    tokens: list[int | None] = []
    while len(tokens) < 10:
        try:
            tokens.append(next(stream).token)
        except KeyboardInterrupt:
            continue
    assert tuple(tokens) == expected
