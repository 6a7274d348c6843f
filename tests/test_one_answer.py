"""One answer: tokens and logits are the same, bit for bit, whatever happens around a request.

Two hundred prompts, or as many as STARCODER_PROMPTS says (`make campaign-engine`).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from starcoder import LLM, formats, prompt_cache
from starcoder.core import ops
from starcoder.core.batch import BLOCK_LEN
from starcoder.engine import Engine, Loop, Request
from starcoder.model import models
from starcoder.model.models import Recorded
from starcoder.sampling.options import GenerationOptions

N_PROMPTS = int(os.environ.get("STARCODER_PROMPTS", "200"))
N_CTX, N_TOKENS = 256, 6
MARK = "00" * 32


@dataclass
class Question:
    """A prompt and its answer: the logits (n, n_vocab) of all tokens but the last, and the ids."""

    prompt: list[int]
    options: GenerationOptions
    tokens: tuple[int, ...] = ()
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))


@pytest.fixture(scope="module")
def model(data: Path) -> Recorded:
    return models.build(formats.read(data / "gpt_bigcode-q4_0.gguf"))


@pytest.fixture(scope="module")
def questions(model: Recorded) -> list[Question]:
    """Prompts that share beginnings now and then, each answered alone by an engine of its own."""
    rng, made = random.Random(1), list[Question]()
    for i in range(N_PROMPTS):
        prompt = list(rng.choice(made).prompt[: rng.randrange(100)]) if i % 2 else []
        prompt += [rng.randrange(1000) for _ in range(rng.randrange(1, 110))]
        seed = GenerationOptions(max_tokens=N_TOKENS, temperature=i % 3 / 2, seed=i)
        question = Question(prompt, seed)
        ((question.tokens, question.logits),) = answers(loop(model), [question], is_known=False)
        made.append(question)
    return made


def loop(model: Recorded, n_blocks: int = 512, n_batch: int = 256) -> Loop:
    positions = n_blocks * BLOCK_LEN
    return Loop(Engine(model, n_ctx=N_CTX, n_positions=positions, n_batch=n_batch))


def events(request: Request) -> Iterator[tuple[int | None, NDArray[np.float32] | None]]:
    i = 0
    while (event := request.wait(i)) is not None:
        assert event.error is None
        yield event.token, event.logits
        if event.finish_reason:
            return
        i += 1


def answers(
    made: Loop, asked: list[Question], is_known: bool = True
) -> list[tuple[tuple[int, ...], NDArray[np.float32]]]:
    """What comes of some questions at once: their texts, and beside them the logits of both."""
    texts = [made.submit(one.prompt, one.options) for one in asked]
    if not is_known:  # they are not known yet
        tokens = [tuple(t for t, _ in events(text) if t is not None) for text in texts]
        known = [[*one.prompt, *found[:-1]] for one, found in zip(asked, tokens, strict=True)]
    else:
        known = [[*one.prompt, *one.tokens[:-1]] for one in asked]
    scored = [made.submit(ids, GenerationOptions(), wants_logits=True) for ids in known]
    if is_known:
        tokens = [tuple(t for t, _ in events(text) if t is not None) for text in texts]
    parts = [[rows for _, rows in events(one) if rows is not None] for one in scored]
    return list(zip(tokens, map(np.concatenate, parts), strict=True))


def check(made: Loop, asked: list[Question]) -> None:
    for one, (tokens, logits) in zip(asked, answers(made, asked), strict=True):
        assert tokens == one.tokens
        assert np.array_equal(logits, one.logits)


def groups(questions: list[Question], rng: random.Random) -> Iterator[list[Question]]:
    """All of them in random order, two to eight at once."""
    left = rng.sample(questions, len(questions))
    while left:
        n = rng.randrange(2, 9)
        yield left[:n]
        del left[:n]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_in_batches_and_chunks_and_behind_what_others_left(
    model: Recorded, questions: list[Question], n_threads: int
) -> None:
    rng, before = random.Random(n_threads), ops.n_threads()
    ops.set_n_threads(n_threads)
    try:
        made = loop(model, n_batch=rng.randrange(1, 60))
        for group in groups(questions, rng):
            check(made, group)
    finally:
        ops.set_n_threads(before)


def test_after_hits_of_random_length(model: Recorded, questions: list[Question]) -> None:
    rng = random.Random(3)
    for group in groups(questions, rng):
        made = loop(model, n_batch=64)
        for one in group:
            beginning = [*one.prompt, *one.tokens][: rng.randrange(1, len(one.prompt) + 3)]
            list(events(made.submit([*beginning, 7], GenerationOptions(max_tokens=1))))
        check(made, group)


def test_where_there_is_too_little_room_for_all(model: Recorded, questions: list[Question]) -> None:
    """What is forgotten, or put off for the more urgent, is computed again."""
    rng = random.Random(4)
    made = loop(model, n_blocks=N_CTX // BLOCK_LEN, n_batch=48)
    for group in groups(questions, rng):
        urgent = made.submit(
            [rng.randrange(1000) for _ in range(150)],
            GenerationOptions(max_tokens=9, priority=rng.choice([-1, 1])),
        )
        check(made, group)
        list(events(urgent))


def test_from_a_file_after_a_restart(
    model: Recorded, questions: list[Question], tmp_path: Path
) -> None:
    first = loop(model)
    for group in groups(questions, random.Random(5)):
        answers(first, group)
    prompt_cache.save(first, tmp_path / "kept", MARK, 1 << 40)
    second = loop(model)
    assert prompt_cache.load(second, tmp_path / "kept", MARK) > 0
    for group in groups(questions, random.Random(6)):
        check(second, group)


def test_next_to_requests_that_are_cancelled(model: Recorded, questions: list[Question]) -> None:
    rng, made = random.Random(7), loop(model, n_blocks=64, n_batch=40)
    for group in groups(questions, rng):
        others = [
            made.submit([rng.randrange(1000) for _ in range(60)], GenerationOptions(max_tokens=50))
            for _ in range(3)
        ]
        for other in others[: rng.randrange(3)]:
            other.cancel()
        check(made, group)
        for other in others:
            other.cancel()


def test_a_model_that_is_asked_by_name_answers_the_same(
    data: Path, questions: list[Question]
) -> None:
    with LLM(data / "gpt_bigcode-q4_0.gguf", n_batch=33) as llm:
        for one in questions[:8]:
            found = llm.generate(
                one.prompt,
                max_tokens=N_TOKENS,
                temperature=one.options.temperature,
                seed=one.options.seed,
                ignore_eos=True,
            )
            assert found.tokens == one.tokens
