"""Log probabilities are those of the model, whatever else is asked for, one for each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from starcoder import LLM, TokenLogprobs

PROMPT = "def read_json(path):\n"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "seed": 4, "top_k": 0},
        {"repeat_penalty": 1.5, "frequency_penalty": 1.0, "logit_bias": {26: -50.0}},
        {"stop": "json.load"},
        {"heal": False, "min_tokens": 9, "stop": ["\n"]},
    ],
)
def test_they_are_those_of_the_logits(llm: LLM, options: Any) -> None:
    done = llm.generate(PROMPT, max_tokens=12, logprobs=3, **options)
    assert done.logprobs is not None
    assert [one.token for one in done.logprobs] == list(done.tokens)
    healed = options.get("heal", True)
    prompt = llm.tokenize(PROMPT)[: -1 if healed else None]
    rows = llm.logits([*prompt, *done.tokens])[len(prompt) - 1 : -1]
    for row, one in zip(map(log_softmax, rows), done.logprobs, strict=True):
        assert one.logprob == row[one.token]
        best = np.lexsort((np.arange(len(row)), -row))[:3]
        assert one.top == tuple((int(i), row[i]) for i in best)


def test_pieces_carry_those_of_the_completion(llm: LLM) -> None:
    whole = llm.generate(PROMPT, max_tokens=12, logprobs=2)
    pieces = list(llm.stream(PROMPT, max_tokens=12, logprobs=2))
    assert tuple(piece.logprobs for piece in pieces if piece.logprobs is not None) == whole.logprobs
    assert all((piece.logprobs is None) == (piece.token is None) for piece in pieces)


def test_without_others_there_is_the_chosen_one_and_unasked_there_is_none(llm: LLM) -> None:
    done = llm.generate(PROMPT, max_tokens=3, logprobs=0)
    assert done.logprobs is not None
    assert [one.top for one in done.logprobs] == [(), (), ()]
    assert llm.generate(PROMPT, max_tokens=3).logprobs is None
    assert llm.generate(PROMPT, max_tokens=0, logprobs=5).logprobs == ()


def test_asking_changes_no_answer_and_neighbors_change_no_logprob(llm: LLM) -> None:
    alone = llm.generate(PROMPT, max_tokens=20, logprobs=5)
    assert alone.tokens == llm.generate(PROMPT, max_tokens=20).tokens
    beside = llm.generate([PROMPT, "class A:", "import "], max_tokens=20, logprobs=5)[0]
    assert (beside.tokens, beside.logprobs) == (alone.tokens, alone.logprobs)


def test_the_most_unlikely_token_still_has_a_finite_one() -> None:
    largest = np.finfo(np.float32).max
    found = TokenLogprobs.of(np.array([largest, -largest, 0], np.float32), 1, 2)
    assert np.isfinite(found.logprob)
    assert found.top == ((0, 0.0), (2, -float(largest)))
    assert TokenLogprobs.of(np.zeros(2, np.float32), 1, 20).top == (
        (0, -np.log(2)),
        (1, -np.log(2)),
    )
