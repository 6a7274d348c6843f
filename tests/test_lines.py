"""Answers that are cut for lack of time are whole lines, read at once or piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from starcoder import LLM
from starcoder.engine import Event, RequestStats
from starcoder.lines import Decoder, WholeLines
from starcoder.stream import Answer

TEXTS = ["a = ", "1\n", "b", " = 2\n    ", "c"]


class Texts:
    """A decoder to which token i is TEXTS[i]."""

    def add(self, token: int) -> str:
        return TEXTS[token]

    def flush(self) -> str:
        return "?"


def whole() -> Decoder:
    return WholeLines(Texts())


def read(new_decoder: Callable[[], Decoder], n: int, reason: str) -> tuple[list[str], Answer]:
    """The pieces of an answer of `n` tokens that ended so, and the answer."""
    stats = RequestStats(0, 0, 0)
    events = [Event(0, stats, i) for i in range(n)] + [Event(0, stats, None, reason)]
    answer = Answer(events, new_decoder)
    return [answer.read().text for _ in events], answer


def test_a_line_is_said_when_it_is_whole() -> None:
    assert read(whole, 4, "time")[0] == ["", "a = 1\n", "", "b = 2\n", ""]


@pytest.mark.parametrize(("n", "text", "n_tokens"), [(0, "", 0), (1, "", 0), (3, "a = 1\n", 2)])
def test_what_has_no_time_for_a_line_leaves_it_out(n: int, text: str, n_tokens: int) -> None:
    pieces, answer = read(whole, n, "time")
    completion = answer.completion(5)
    assert "".join(pieces) == completion.text == text
    assert completion.tokens == tuple(range(n_tokens))
    assert completion.finish_reason == "time"


def test_an_answer_that_ends_by_itself_is_said_to_the_end() -> None:
    pieces, answer = read(whole, 5, "stop")
    assert "".join(pieces) == answer.completion(5).text == "a = 1\nb = 2\n    c?"
    assert answer.completion(5).tokens == (0, 1, 2, 3, 4)


def test_without_a_limit_every_token_is_said_at_once() -> None:
    assert read(Texts, 3, "stop")[0] == ["a = ", "1\n", "b", "?"]


def test_a_model_keeps_to_its_time_and_says_so(data: Path) -> None:
    with LLM(data / "gpt_bigcode-q4_0.gguf") as llm:
        none = llm.generate("def f(x):", max_time_ms=0)
        assert (none.text, none.tokens, none.finish_reason) == ("", (), "time")
        cut = llm.generate("def f(x):", max_tokens=500, max_time_ms=5, ignore_eos=True)
        assert cut.finish_reason in ("time", "length")
        assert cut.finish_reason == "length" or not cut.text or cut.text.endswith("\n")
        assert llm.generate("def f(x):", max_tokens=3, max_time_ms=1e6).finish_reason == "length"
