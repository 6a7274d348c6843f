"""Answers of a wanted form have it, whatever the model would say, alone or next to others."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

import pytest

from starcoder import LLM, InputError
from starcoder.text.grammar import Grammars
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.vocabularies import TRAINED

PROMPT = "def config():\n    return "
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9},
        "kind": {"enum": ["a", "bé", None]},
        "sizes": {"type": "array", "items": {"enum": [1, 22]}, "maxItems": 2},
    },
    "required": ["name", "kind", "sizes"],
    "additionalProperties": False,
}
SUM = r"""
start: NUMBER ("+" NUMBER){1,4}
NUMBER: /[1-9][0-9]?/
"""


@pytest.fixture(scope="module")
def llm() -> LLM:
    pytest.importorskip("llguidance")
    return LLM()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA)])
def test_json_fits_its_schema(llm: LLM, schema: Any, seed: int) -> None:
    done = llm.generate(
        PROMPT, json_schema=schema, temperature=1.5, top_k=0, seed=seed, max_tokens=900
    )
    assert done.finish_reason == "stop"
    value = json.loads(done.text)
    assert list(value) == ["name", "kind", "sizes"]
    assert len(value["name"]) <= 9
    assert value["kind"] in ("a", "bé", None)
    assert len(value["sizes"]) <= 2
    assert {type(size) for size in value["sizes"]} <= {int}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "pattern", ["[a-z]{3}é{1,4}x", "🦙|日本", "", "(ab|a){0,9}c", r"x\d{2,4}\n"]
)
def test_text_is_what_the_expression_matches(llm: LLM, pattern: str, seed: int) -> None:
    done = llm.generate(PROMPT, regex=pattern, temperature=2.0, top_k=0, seed=seed, max_tokens=300)
    assert (re.fullmatch(pattern, done.text) is not None, done.finish_reason) == (True, "stop")


def test_text_is_what_the_grammar_makes(llm: LLM) -> None:
    done = llm.generate(PROMPT, grammar=SUM, temperature=1.0, seed=1, max_tokens=60)
    assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,4}", done.text)


def test_what_may_go_on_ends_where_the_model_ends_it(llm: LLM) -> None:
    """With its end token, which only a complete answer may have, or with `max_tokens`."""
    cut = llm.generate(PROMPT, regex="a+", max_tokens=5, logit_bias={0: -100})
    assert (cut.finish_reason, len(cut.tokens), set(cut.text)) == ("length", 5, {"a"})
    ended = llm.generate(PROMPT, regex="a{2}( b)*", max_tokens=20, logit_bias={0: 100})
    assert (ended.text, ended.finish_reason) == ("aa", "stop")
    later = llm.generate(PROMPT, regex="a.*", max_tokens=20, logit_bias={0: 100}, min_tokens=3)
    assert (len(later.tokens), later.finish_reason) == (3, "stop")


def test_neighbors_change_nothing(llm: LLM) -> None:
    hot: Any = {"temperature": 1.0, "max_tokens": 80, "logprobs": 2, "seed": 3}
    alone = llm.generate(PROMPT, json_schema=SCHEMA, **hot)
    streams = [
        llm.stream(PROMPT, json_schema=SCHEMA, **hot),
        llm.stream("class A:", **hot),
        llm.stream(PROMPT, regex="[a-z ]{30}", **hot),
        llm.stream(PROMPT, json_schema=SCHEMA, **hot),
    ]
    beside = [stream.drain() for stream in streams]
    for one in (beside[0], beside[3]):
        assert (one.text, one.tokens, one.logprobs) == (alone.text, alone.tokens, alone.logprobs)


def test_pieces_make_up_the_answer(llm: LLM) -> None:
    options: Any = {"regex": "日本🦙{3}é", "max_tokens": 60}
    pieces = [piece.text for piece in llm.stream(PROMPT, **options)]
    assert "".join(pieces) == llm.generate(PROMPT, **options).text == "日本🦙🦙🦙é"


def test_a_stop_string_ends_a_form_too(llm: LLM) -> None:
    done = llm.generate(PROMPT, regex="[0-9]{4}xyz", stop="xy", max_tokens=20)
    assert re.fullmatch("[0-9]{4}", done.text)
    assert done.finish_reason == "stop"


def test_log_probabilities_are_the_models_own(llm: LLM) -> None:
    done = llm.generate(PROMPT, regex="zq", logprobs=1)
    assert done.logprobs is not None
    assert done.logprobs[0].top[0][1] > done.logprobs[0].logprob


def test_a_mapping_that_changes_later_changes_nothing(llm: LLM) -> None:
    schema: dict[str, Any] = {"enum": ["one"]}
    stream = llm.stream(PROMPT, json_schema=schema)
    schema["enum"][0] = "other"
    assert stream.drain().text == '"one"'


def test_special_tokens_are_no_text_and_blanks_come_to_an_end() -> None:
    pytest.importorskip("llguidance")
    vocab = TRAINED.vocab
    grammars = Grammars(TRAINED)
    allowed = grammars.make("regex", r"(.|\n)*").allowed()
    assert allowed is not None
    assert set(allowed.tolist()) & vocab.special_ids == vocab.end_ids
    grammar = grammars.make("json_schema", '{"type": "array", "items": {"type": "null"}}')
    grammar.take(vocab.tokens.index(b"["))
    blank = vocab.tokens.index(b" ")
    for _ in range(64):
        grammar.take(blank)
    allowed = grammar.allowed()
    assert allowed is not None
    assert blank not in allowed
    assert vocab.tokens.index(b"]") in allowed


def test_a_vocabulary_without_an_end_has_answers_that_end() -> None:
    pytest.importorskip("llguidance")
    vocab = replace(TRAINED.vocab, eos_id=None, special_ids=frozenset())
    grammar = Grammars(Tokenizer(vocab)).make("regex", "ab?")
    grammar.take(vocab.tokens.index(b"a"))
    allowed = grammar.allowed()
    assert allowed is not None
    assert [vocab.tokens[i] for i in allowed] == [b"b"]
    grammar.take(vocab.tokens.index(b"b"))
    assert grammar.is_over


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regex": "(("}, r"regex: found .*unclosed group.*, expected a regular expression"),
        ({"regex": "(?=a)b"}, "regex: found .*look-around.* is not supported"),
        ({"regex": "[^\\x00-\\U0010ffff]"}, "regex: found one that no text fits"),
        ({"regex": 3}, "regex: found int, expected text"),
        ({"regex": "a\ud800"}, "regex: found U\\+D800, half of a character"),
        ({"grammar": "x"}, "grammar: found .*Expected token ':'.*, expected a grammar in Lark"),
        ({"grammar": "start: " + "(" * 99_999}, "grammar: found .*too deeply nested"),
        ({"json_schema": {"type": "foo"}}, "json_schema: found Invalid type: foo, expected a JSON"),
        ({"json_schema": "{"}, "json_schema: found EOF while parsing .*, expected a JSON schema"),
        ({"json_schema": "[" * 99_999}, "json_schema: found recursion limit exceeded"),
        ({"json_schema": {"$ref": "http://x.y/z"}}, "json_schema: found Resource 'http://x.y/z'"),
        ({"json_schema": {"const": {1}}}, "json_schema: found what JSON cannot say"),
        ({"json_schema": {"const": float("nan")}}, "json_schema: found what JSON cannot say"),
        ({"json_schema": [1]}, "json_schema: found list, expected a JSON schema: a mapping"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar: found 2 forms, expected one of them"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos: found True, expected False, as regex"),
    ],
)
def test_what_is_no_form_is_refused_in_one_line(llm: LLM, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        llm.generate(PROMPT, **options)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    other = LLM()
    with pytest.raises(InputError, match=r"no package llguidance, .*pip install 'starcoder-py\["):
        other.generate(PROMPT, regex="a")
    assert other.generate(PROMPT, max_tokens=1).finish_reason == "length"
