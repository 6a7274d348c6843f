"""Several answers to one prompt: each as if it were asked for alone, the prompt computed once."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, AsyncLLM, GenerationOptions, InputError
from starcoder.engine import Engine
from tests.helpers.fake_model import N_CTX, FakeModel

PROMPT = "def read_json(path):\n"
HOT: Any = {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "logprobs": 1}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@pytest.mark.parametrize("prompt", [PROMPT, [328, 445, 26]])
def test_each_is_what_its_seed_gives_alone(llm: LLM, prompt: Any) -> None:
    answers = llm.generate(prompt, n=3, seed=5, **HOT)
    alone = [llm.generate(prompt, seed=5 + i, **HOT) for i in range(3)]
    assert [(a.text, a.tokens, a.logprobs) for a in answers] == [
        (a.text, a.tokens, a.logprobs) for a in alone
    ]
    assert len({a.text for a in answers}) > 1


def test_a_list_of_prompts_gives_a_list_of_lists(llm: LLM) -> None:
    prompts = [PROMPT, "class A:"]
    answers = llm.generate(prompts, n=2, seed=5, **HOT)
    flat = llm.generate([PROMPT, PROMPT, "class A:", "class A:"], seed=5, **HOT)
    assert [[a.tokens for a in group] for group in answers] == [
        [a.tokens for a in flat[:2]],
        [a.tokens for a in flat[2:]],
    ]
    nothing: list[str] = []
    assert llm.generate(nothing, n=2) == []


def test_one_answer_is_a_list_of_one(llm: LLM) -> None:
    assert [a.text for a in llm.generate(PROMPT, n=1, max_tokens=5)] == [
        llm.generate(PROMPT, max_tokens=5).text
    ]


def test_a_prompt_that_can_be_read_once_has_several_answers_too(llm: LLM) -> None:
    ids: Any = llm.tokenize(PROMPT)
    n: Any = np.int8(2)
    expected = [a.tokens for a in llm.generate(ids, n=2, seed=1, **HOT)]
    assert [a.tokens for a in llm.generate(iter(ids), n=n, seed=1, **HOT)] == expected


def test_asyncio_has_the_same(llm: LLM) -> None:
    async def ask() -> list[str]:
        async with AsyncLLM() as other:
            return [a.text for a in await other.generate(PROMPT, n=3, seed=5, **HOT)]

    assert asyncio.run(ask()) == [a.text for a in llm.generate(PROMPT, n=3, seed=5, **HOT)]


def test_the_prompt_is_computed_once() -> None:
    model = FakeModel()
    engine = Engine(model, n_ctx=N_CTX, n_positions=8 * N_CTX, n_batch=64)
    prompt = list(range(1, 38))
    for seed in range(4):
        engine.submit(prompt, GenerationOptions(max_tokens=1, temperature=1, seed=seed))
    while not engine.is_idle:
        engine.step()
    n_computed = sum(len(batch.tokens) for batch in model.batches)
    assert n_computed == len(prompt) + 3


@pytest.mark.parametrize("n", [0, -1, 1025, 1.5, "2", True, np.nan])
def test_what_is_no_number_of_answers_is_refused(llm: LLM, n: Any) -> None:
    with pytest.raises(InputError, match=r"^n: found .*, expected a whole number from 1 to 1024$"):
        llm.generate(PROMPT, n=n)
