"""Answers that are cut for lack of time are whole lines, read at once or piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from starcoder import LLM
from starcoder.completion.plan import Planner
from starcoder.completion.stream import Answer
from starcoder.engine import Event, RequestStats
from starcoder.model.vocab import Vocab
from starcoder.sampling.options import GenerationOptions
from starcoder.text.tokenizer import Tokenizer

TEXTS = (b"a = ", b"1\n", b"b", b" = 2\n    ", b"c\xc3")  # the last is half a character
TOKENIZER = Tokenizer(Vocab(TEXTS, np.empty((0, 2), np.int32), frozenset(), eos_id=None))


def read(n: int, reason: str, ms: float | None = 1e6) -> tuple[list[str], Answer]:
    """The pieces of an answer of `n` tokens that ended so, and the answer."""
    stats = RequestStats(0, 0, 0)
    events = [Event(0, stats, i) for i in range(n)] + [Event(0, stats, None, reason)]
    answer = Answer(events, Planner(TOKENIZER, 99).plan([0], GenerationOptions(max_time_ms=ms)))
    return [answer.read().text for _ in events], answer


def test_a_line_is_said_when_it_is_whole() -> None:
    assert read(4, "time")[0] == ["", "a = 1\n", "", "b = 2\n", ""]


@pytest.mark.parametrize(("n", "text", "n_tokens"), [(0, "", 0), (1, "", 0), (3, "a = 1\n", 2)])
def test_what_has_no_time_for_a_line_leaves_it_out(n: int, text: str, n_tokens: int) -> None:
    pieces, answer = read(n, "time")
    completion = answer.completion()
    assert "".join(pieces) == completion.text == text
    assert completion.tokens == tuple(range(n_tokens))
    assert completion.finish_reason == "time"


def test_an_answer_that_ends_by_itself_is_said_to_the_end() -> None:
    pieces, answer = read(5, "stop")
    assert "".join(pieces) == answer.completion().text == "a = 1\nb = 2\n    c\ufffd"
    assert answer.completion().tokens == (0, 1, 2, 3, 4)


def test_without_a_limit_every_token_is_said_at_once() -> None:
    assert read(3, "stop", None)[0] == ["a = ", "1\n", "b", ""]


def test_a_model_keeps_to_its_time_and_says_so(data: Path) -> None:
    with LLM(data / "gpt_bigcode-q4_0.gguf") as llm:
        none = llm.generate("def f(x):", max_time_ms=0)
        assert (none.text, none.tokens, none.finish_reason) == ("", (), "time")
        cut = llm.generate("def f(x):", max_tokens=500, max_time_ms=5, ignore_eos=True)
        assert cut.finish_reason in ("time", "length")
        assert cut.finish_reason == "length" or not cut.text or cut.text.endswith("\n")
        assert llm.generate("def f(x):", max_tokens=3, max_time_ms=1e6).finish_reason == "length"
