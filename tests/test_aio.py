"""AsyncLLM: the answers of LLM, while an event loop does other things."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from starcoder import LLM, AsyncLLM, InputError, StarcoderError

PROMPTS = ["def fibonacci(n):\n", "class A:", "x = [1, 2, 3]\nfor y in x:\n    print(", "{"]
Test = Callable[[AsyncLLM], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def path(data: Path) -> Path:
    return data / "gpt_bigcode-q4_0.gguf"


def run(path: Path, test: Test) -> None:
    async def main() -> None:
        async with await AsyncLLM.load(path) as llm:
            await asyncio.wait_for(test(llm), 60)

    asyncio.run(main())


async def idle(llm: AsyncLLM) -> bool:
    for _ in range(1000):
        stats = llm.stats()
        if not stats.n_running and not stats.n_waiting:
            return True
        await asyncio.sleep(0.01)
    return False


def test_its_answers_are_those_of_llm(path: Path) -> None:
    expected = LLM(path).generate(PROMPTS, max_tokens=20, temperature=1.0, seed=4)

    async def test(llm: AsyncLLM) -> None:
        found = await llm.generate(PROMPTS, max_tokens=20, temperature=1.0, seed=4)
        assert [c.tokens for c in found] == [c.tokens for c in expected]
        one = await llm.generate(PROMPTS[0], max_tokens=20, temperature=1.0, seed=4)
        assert one.text == expected[0].text
        assert len(await llm.generate(list[str]())) == 0
        ids = llm.tokenize("def f")
        assert (await llm.logits(ids)).shape == (len(ids), llm.facts.n_vocab)
        assert llm.detokenize(ids) == "def f"

    run(path, test)


def test_many_tasks_read_at_once(path: Path) -> None:
    expected = [c.text for c in LLM(path).generate(PROMPTS, max_tokens=20)]

    async def test(llm: AsyncLLM) -> None:
        async def read(prompt: str) -> str:
            async with llm.stream(prompt, max_tokens=20) as stream:
                return "".join([piece.text async for piece in stream])

        assert list(await asyncio.gather(*map(read, PROMPTS))) == expected

    run(path, test)


def test_another_thread_may_close_what_a_task_reads(path: Path) -> None:
    async def main() -> None:
        async with await AsyncLLM.load(path) as llm:
            for _ in range(5):
                stream = llm.stream(PROMPTS[0], max_tokens=200, ignore_eos=True)
                reader = asyncio.create_task(stream.drain())
                await asyncio.sleep(0.01)
                threading.Thread(target=stream.close).start()
                await asyncio.wait_for(reader, 60)

    asyncio.run(main(), debug=True)  # which says where a thread reaches into the event loop


def test_others_go_on_while_it_computes(path: Path) -> None:
    async def test(llm: AsyncLLM) -> None:
        async def count() -> int:
            n, until = 0, time.monotonic() + 0.3
            while time.monotonic() < until:
                await asyncio.sleep(0.001)
                n += 1
            return n

        generating = asyncio.ensure_future(llm.generate(PROMPTS * 4, max_tokens=200))
        assert await count() > 3
        assert len(await generating) == 16

    run(path, test)


def test_a_task_that_is_cancelled_ends_its_request(path: Path) -> None:
    async def test(llm: AsyncLLM) -> None:
        task = asyncio.ensure_future(llm.generate("def f", max_tokens=400, ignore_eos=True))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await idle(llm)

    run(path, test)


def test_a_stream_that_is_cancelled_while_waiting_loses_no_piece(path: Path) -> None:
    expected = LLM(path).generate("def f", max_tokens=40, ignore_eos=True).tokens

    async def test(llm: AsyncLLM) -> None:
        stream = llm.stream("def f", max_tokens=40, ignore_eos=True)
        for _ in range(200):
            try:
                await asyncio.wait_for(stream.drain(), 0.0005)
                break
            except asyncio.TimeoutError:
                continue
        assert (await stream.drain()).tokens == expected

    run(path, test)


def test_closing_a_stream_wakes_who_reads_it(path: Path) -> None:
    async def test(llm: AsyncLLM) -> None:
        stream = llm.stream("def f", max_tokens=400, ignore_eos=True)
        reading = asyncio.ensure_future(stream.drain())
        await asyncio.sleep(0)
        stream.close()
        assert (await reading).finish_reason == "cancelled"

    run(path, test)


def test_errors_are_those_of_llm(path: Path) -> None:
    async def test(llm: AsyncLLM) -> None:
        with pytest.raises(InputError, match="top_p"):
            await llm.generate("x", top_p=2)
        with pytest.raises(InputError):
            await llm.generate(["x", "y" * 100_000])
        assert await idle(llm)
        await llm.close()
        with pytest.raises(StarcoderError, match="closed"):
            await llm.generate("x")

    run(path, test)
