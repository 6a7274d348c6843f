"""A stop string ends the text before it, and no part of it is ever shown, however tokens cut it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from starcoder import LLM, InputError
from starcoder.completion.answer_text import AnswerText
from starcoder.text.stops import StopSearch
from tests.helpers.vocabularies import TRAINED

few = st.sampled_from("ab\né")
short_texts = st.text(few, max_size=40)
stop_lists = st.lists(st.text(few, min_size=1, max_size=6), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def end_by_hand(text: str, stops: list[str]) -> int | None:
    """Where the text ends, by trying every end of every stop string."""
    for n in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:n].endswith(stop)]
        if found:
            return n - max(found)
    return None


def n_clear(text: str, stops: list[str]) -> int:
    """How much of a text without a stop string can be no part of one, by trying every suffix."""
    starts = range(len(text) + 1)
    return next(i for i in starts if any(stop.startswith(text[i:]) for stop in stops))


@settings(max_examples=500, deadline=None)
@given(short_texts, stop_lists, st.lists(st.integers(1, 5)))
@example("aab", ["aab"], [1, 1])
@example("aaab", ["aab"], [])
@example("abab\nabé", ["abé", "ab\n\n", "\nabb"], [])
def test_what_is_shown_is_what_a_slow_search_finds(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    search, shown, n = StopSearch(stops), "", 0
    end = end_by_hand(text, stops)
    for size in (*cuts, *[1] * len(text)):
        shown += search.add(text[n : n + size])
        n = min(n + size, len(text))
        if search.is_over:
            break
        assert shown == text[: n_clear(text[:n], stops)]
    assert search.is_over == (end is not None)
    if end is None:
        shown += search.flush()
    assert shown == text[:end]


bytes_of_text = st.text(st.sampled_from("aé日🦙\n "), max_size=20).map(str.encode)
short_stops = st.text(st.sampled_from("aé日🦙\n"), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(
    bytes_of_text, st.text(st.sampled_from("aé日🦙\n"), min_size=1, max_size=3), st.integers(0, 4)
)
def test_characters_of_several_tokens_are_found_as_whole_ones(
    raw: bytes, stop: str, n_unsearched: int
) -> None:
    """Each byte comes as a token of its own; in the first of them nothing is looked for."""
    ids = [TRAINED.vocab.tokens.index(bytes([byte])) for byte in raw]
    answer, shown = AnswerText(TRAINED, [stop], n_unsearched=n_unsearched), ""
    for token in ids:
        shown += answer.add(token)
        if answer.is_over:
            break
    else:
        shown += answer.flush()
    n_free = len(raw[:n_unsearched].decode(errors="ignore"))
    text = raw.decode()
    end = end_by_hand(text[n_free:], [stop])
    assert shown == (text if end is None else text[: n_free + end])


def test_a_stop_string_of_ten_thousand_characters_is_held_back_and_then_shown() -> None:
    stop = "ab" * 5_000
    search = StopSearch([stop])
    assert search.add("x" + stop[:-1]) == "x"
    assert search.add("c") + search.flush() == stop[:-1] + "c"
    assert StopSearch([stop]).add("x" + stop + "y") == "x"


PROMPT = "def read_json(path):\n"


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        ("open(", {}),
        (["return", "json.load"], {}),
        ("th op", {}),
        (["\n", "\n    "], {"min_tokens": 4}),
        ("with", {"temperature": 0.8, "seed": 7}),
    ],
)
def test_an_answer_ends_before_the_stop_string(llm: LLM, stop: Any, options: Any) -> None:
    whole = llm.generate(PROMPT, max_tokens=40, **options)
    done = llm.generate(PROMPT, max_tokens=40, stop=stop, **options)
    assert done.finish_reason == "stop"
    assert whole.text.startswith(done.text)
    stops = [stop] if isinstance(stop, str) else stop
    assert any(whole.text[len(done.text) :].startswith(one) for one in stops)
    assert done.tokens == whole.tokens[: len(done.tokens)], (
        "those of the stop string are among them"
    )
    assert done.text in llm.detokenize(done.tokens)
    pieces = list(llm.stream(PROMPT, max_tokens=40, stop=stop, **options))
    assert "".join(piece.text for piece in pieces) == done.text
    assert [piece.finish_reason for piece in pieces].count(None) == len(pieces) - 1


def test_what_is_held_back_comes_with_the_end(llm: LLM) -> None:
    whole = llm.generate(PROMPT, max_tokens=10)
    pieces = list(llm.stream(PROMPT, max_tokens=10, stop=whole.text + "never"))
    assert [piece.text for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert (pieces[-1].text, pieces[-1].finish_reason) == (whole.text, "length")


def test_the_engine_ends_where_the_reader_does(llm: LLM) -> None:
    """So nothing is computed for an answer that nobody reads on."""
    done = llm.generate([PROMPT] * 3, max_tokens=500, stop="\n")
    assert {(one.finish_reason, len(one.tokens) < 30) for one in done} == {("stop", True)}
    assert llm.stats().n_running == 0


def test_where_only_whole_lines_are_shown_a_stop_string_ends_the_last_one(llm: LLM) -> None:
    options: Any = {"max_tokens": 40, "stop": "load(", "max_time_ms": 60_000}
    done = llm.generate(PROMPT, **options)
    assert (done.text[-6:], done.finish_reason) == (" json.", "stop")
    pieces = [piece.text for piece in llm.stream(PROMPT, **options)]
    assert "".join(pieces) == done.text
    assert all(text.endswith("\n") for text in pieces[:-1] if text)


def test_the_prompt_is_not_searched(llm: LLM) -> None:
    prompt = "def add(a, b):\n    retu"
    assert llm.generate(prompt, max_tokens=8, stop="return").text.startswith("rn")


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ("", "stop: found an empty text, expected at least one character"),
        (["a", ""], "stop: found an empty text"),
        (None, "stop: found NoneType, expected a text or a list of texts"),
        ([1], "stop: found int, expected text"),
        (b"x", "stop: found bytes, expected a text or a list of texts"),
        ({"a"}, "stop: found set"),
        ("a\ud800", "stop: found U\\+D800, half of a character"),
        ("x" * 20_000, "stop: found a text of 20,000 characters, expected at most 16,384"),
        (["x"] * 65, "stop: found 65 texts, expected at most 64"),
    ],
)
def test_what_is_no_stop_string_is_refused(llm: LLM, stop: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        llm.generate("a", stop=stop)


def test_a_list_that_changes_later_changes_nothing(llm: LLM) -> None:
    stops = ["open("]
    with llm.stream(PROMPT, max_tokens=40, stop=stops) as stream:
        stops[0] = "never"
        assert stream.drain().finish_reason == "stop"
