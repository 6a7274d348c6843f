"""A prompt may end anywhere in a word: what follows is what would follow of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder import LLM
from starcoder.heal import Healer


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@pytest.fixture(scope="module")
def healer(llm: LLM) -> Healer:
    return Healer(llm._tokenizer.vocab)


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ("from pathlib import ", "Path"),
        ("def add(a, b):\n    ret", "urn a + b"),
        ("def add(a, b):\n    return a", " + b"),
    ],
)
def test_a_word_that_was_begun_is_ended(llm: LLM, prompt: str, beginning: str) -> None:
    assert llm.generate(prompt, max_tokens=12, heal=True).text.startswith(beginning)


@pytest.mark.parametrize("header", ["def add(a, b):", "def read_file(path):", "class Point:"])
def test_behind_a_line_feed_comes_the_indentation(llm: LLM, header: str) -> None:
    text = llm.generate(header + "\n", max_tokens=8, heal=True).text
    assert text.startswith("    ")
    assert not text.startswith("     ")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}])
def test_pieces_and_text_begin_behind_the_prompt(llm: LLM, options: Any) -> None:
    prompt = "def add(a, b):\n    retu"
    whole = llm.generate(prompt, max_tokens=20, heal=True, **options)
    pieces = [p.text for p in llm.stream(prompt, max_tokens=20, heal=True, **options)]
    assert "".join(pieces) == whole.text
    assert whole.text.startswith("rn")
    assert llm.detokenize(list(whole.tokens)).endswith(whole.text)


def test_token_ids_are_taken_as_they_are(llm: LLM) -> None:
    ids = llm.tokenize("from pathlib import ")
    assert (
        llm.generate(ids, max_tokens=8, heal=True).tokens == llm.generate(ids, max_tokens=8).tokens
    )


texts = st.lists(
    st.sampled_from(
        ["def f", "(", "self", " ", "\n", "\n    ", "é", "return", "x1", "<fim_prefix>"]
    ),
    min_size=1,
    max_size=8,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_what_is_taken_back_is_said_again(llm: LLM, healer: Healer, text: str) -> None:
    ids = llm.tokenize(text)
    kept, healing = healer.heal(ids)
    assert ids[: len(kept)] == kept
    assert kept
    if healing is None:
        assert kept == ids
        return
    tokens = healer.tokens
    taken = b"".join(tokens[i] for i in ids[len(kept) :])
    assert healing.n_bytes == len(taken)
    said = b""
    while (allowed := healing.allowed()) is not None:
        assert len(allowed)
        assert (allowed[1:] > allowed[:-1]).all()
        for i in allowed.tolist():
            fits = tokens[i].startswith(taken[len(said) :])
            assert fits or taken[len(said) :].startswith(tokens[i])
        token = int(allowed[len(said) % len(allowed)])
        healing.take(token)
        said += tokens[token]
    assert said.startswith(taken)


def test_special_tokens_are_never_taken_back(llm: LLM, healer: Healer) -> None:
    ids = llm.tokenize("<fim_prefix>x<fim_suffix>y<fim_middle>")
    assert healer.heal(ids) == (ids, None)
