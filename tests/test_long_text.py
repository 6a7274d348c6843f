"""Text of any length has the ids that it has as a whole, in little memory."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import starcoder.text.long_text
from starcoder import LLM, InputError, pocket
from starcoder.formats import read
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.vocabularies import NUMBERS_TOGETHER, TRAINED, code_like, few_words, make_vocab

POCKET = Tokenizer(read(pocket.PATH).vocab)
POCKET_NUMBERS = Tokenizer(replace(POCKET.vocab, split_digits=False))
TOKENIZERS = [TRAINED, NUMBERS_TOGETHER, POCKET, POCKET_NUMBERS]

words = st.one_of(
    code_like,
    few_words,
    st.text(),
    st.text("aab", max_size=200),
    st.text(" \n\t", max_size=100).map(lambda text: text + "x"),
    st.text("'rest( ", max_size=60),
    st.text("12½٣", max_size=60),
    st.tuples(st.text(max_size=3), st.integers(1, 200)).map(lambda pair: pair[0] * pair[1]),
)


def in_pieces(tokenizer: Tokenizer, text: str, size: int) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starcoder.text.long_text, "_PIECE", size)
        return tokenizer.encode(text)


@settings(max_examples=1500, deadline=None)
@given(words, st.integers(4, 12), st.sampled_from(TOKENIZERS))
def test_text_in_pieces_has_the_ids_of_the_whole(
    text: str, size: int, tokenizer: Tokenizer
) -> None:
    assert in_pieces(tokenizer, text, size) == tokenizer.encode(text)


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_it_does_so_for_any_merges_in_any_order(data: st.DataObject) -> None:
    """Such as no training makes: later merges before those that they need, far-reaching chains."""
    parts = [b"a", b"b", b"c"]
    merges: list[tuple[bytes, bytes]] = []
    for _ in range(data.draw(st.integers(1, 12))):
        pair = data.draw(st.sampled_from(parts)), data.draw(st.sampled_from(parts))
        if (whole := pair[0] + pair[1]) not in parts and len(whole) < 9:
            parts.append(whole)
            merges.append(pair)
    tokenizer = Tokenizer(make_vocab(data.draw(st.permutations(merges))))
    text = data.draw(st.text("abc", max_size=80) | st.text("ab", max_size=80))
    assert in_pieces(tokenizer, text, data.draw(st.integers(4, 20))) == tokenizer.encode(text)


LONG = {
    "digits": "1234567890" * 20_000,
    "blanks": " " * 200_001,
    "lines": "\n" * 200_001 + "x",
    "tabs": "x" + "\t" * 200_001,
    "a letter": "a" * 200_001,
    "an apostrophe": "'" * 200_001 + "s",
    "letters": "".join(random.Random(0).choices("abcdef", k=200_001)),
    "marks": "e\u0301" * 100_001,
    "emoji": "🦙🧑‍🚀" * 40_001,
    "ideographs": "日本語の" * 50_001,
    "NUL": "\0" * 200_001,
    "halves of special tokens": "<fim_" * 40_001,
}


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("kind", LONG)
def test_long_text_without_places_to_cut_has_the_ids_of_the_whole(kind: str, numbers: bool) -> None:
    tokenizer = POCKET_NUMBERS if numbers else POCKET
    ids = tokenizer.encode(LONG[kind])
    assert ids == in_pieces(tokenizer, LONG[kind], 1 << 30)


# ------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
from starcoder import pocket
from starcoder.formats import read
from starcoder.text.tokenizer import Tokenizer
tokenizer, text = Tokenizer(read(pocket.PATH).vocab), {text} * 400_000
tokenizer.encode(text[:1000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n = len(tokenizer.encode(text))
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(more * (1 if sys.platform == "darwin" else 1024) / len(text))
"""


@pytest.mark.parametrize("text", ["12345", "aaaaa", "\t\t\t\t\t", "'''''"])
def test_a_character_takes_few_bytes_of_memory(text: str) -> None:
    """Of two million: the list of ids takes 8 a character, the library alone 160 to 400."""
    command = [sys.executable, "-c", PEAK.format(text=repr(text))]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(found.stdout) < 80


# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(n_threads=1, n_ctx=64)


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(self: Tokenizer, text: str) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    most = 64 * llm._tokenizer.max_token_bytes
    for text in ("1" * (most + 1), "é" * (most // 2 + 1), "🦙" * most):
        for call in (llm.generate, llm.stream, lambda text: llm.generate([text, "x"])):
            with pytest.raises(InputError) as caught:
                call(text)
            message = f"prompt: found {len(text):,} characters, expected at most 64 tokens"
            assert str(caught.value).startswith(message)


def test_a_prompt_that_may_fit_is_counted_in_tokens(llm: LLM) -> None:
    assert llm.generate("1" * 64, max_tokens=0).prompt_tokens == 64
    with pytest.raises(InputError, match="found 65 tokens, expected at most 64"):
        llm.generate("1" * 65, max_tokens=0)
