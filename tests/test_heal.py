"""A prompt may end anywhere in a word: what follows is what would follow of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder import LLM
from starcoder.errors import InputError
from starcoder.text.heal import Healer


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


def test_texts_are_healed_unless_that_is_unwanted_and_token_ids_never(llm: LLM) -> None:
    text = "from pathlib import "
    ids = llm.tokenize(text)
    as_they_are = llm.generate(text, max_tokens=8, heal=False)
    assert llm.generate(ids, max_tokens=8).tokens == as_they_are.tokens
    assert llm.generate(text, max_tokens=8).text == llm.generate(text, max_tokens=8, heal=True).text
    assert llm.generate(text, max_tokens=8).text != as_they_are.text


@pytest.mark.parametrize("prompt", ["def add(a, b):\n    return", "x = [1, 2, 3]\nfor", "class A:"])
@pytest.mark.parametrize("n", [1, 2, 12])
def test_what_the_prompt_said_counts_as_the_prompts(llm: LLM, prompt: str, n: int) -> None:
    done = llm.generate(prompt, max_tokens=n, ignore_eos=True)
    assert done.prompt_tokens == len(llm.tokenize(prompt))
    assert (len(done.tokens), done.finish_reason) == (n, "length")
    pieces = list(llm.stream(prompt, max_tokens=n, ignore_eos=True))
    assert tuple(p.token for p in pieces if p.token is not None) == done.tokens
    assert all(not piece.text for piece in pieces if piece.token is None)


def test_a_prompt_that_fills_the_context_is_healed_too() -> None:
    llm = LLM(n_ctx=16)
    prompt = "def add(a, b):\n    retu"
    assert len(llm.tokenize(prompt)) == 10
    done = llm.generate(prompt, ignore_eos=True)
    assert (done.text[:2], done.finish_reason) == ("rn", "length")
    assert len(done.tokens) >= 6, "what the prompt said may take fewer tokens than it had"


@pytest.mark.parametrize("end", ["self.x =", "self.x = ", "sel", "self.", ""])
def test_what_is_before_a_gap_may_end_anywhere(llm: LLM, end: str) -> None:
    before = "class Point:\n    def __init__(self, x, y):\n        " + end
    prompt = f"<fim_prefix><fim_suffix>\n        self.y = y\n<fim_middle>{before}"
    line = llm.generate(prompt, max_tokens=12).text.split("\n")[0]
    assert end + line == "self.x = x"


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


def test_a_prompt_is_too_long_by_its_own_tokens_and_not_by_what_is_left_of_them() -> None:
    text = "x = 1\n" * 4 + "from pathlib import "
    n = len(LLM().tokenize(text))
    assert LLM(n_ctx=n).generate(text, max_tokens=1).prompt_tokens == n
    for n_ctx in (n - 1, n - 2):
        with pytest.raises(InputError, match=f"found {n} tokens, expected at most {n_ctx}"):
            LLM(n_ctx=n_ctx).generate(text, max_tokens=1)
