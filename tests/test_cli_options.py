"""Every option of an answer has its flag, and the flag does what the keyword does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from starcoder import LLM
from tests.helpers.command import Run

PROMPT = "def read_json(path):\n"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--stop", "open(", "--stop", "json"], {"stop": ["open(", "json"]}),
        (
            ["--logit-bias", "285=-5.5", "--logit_bias", "482=3"],
            {"logit_bias": {285: -5.5, 482: 3}},
        ),
        (["--logprobs", "2"], {"logprobs": 2}),
        (["--no-heal"], {"heal": False}),
        (["--heal"], {}),
        (["--min-tokens", "3", "--stop", "\n"], {"min_tokens": 3, "stop": "\n"}),
        (["--min-p", "0.1", "--temp", "1", "-s", "3"], {"min_p": 0.1, "temperature": 1, "seed": 3}),
        (
            ["--typical-p", "0.5", "--temp", "1", "-s", "3"],
            {"typical_p": 0.5, "temperature": 1, "seed": 3},
        ),
        (
            ["--frequency-penalty", "2", "--presence-penalty", "1"],
            {"frequency_penalty": 2, "presence_penalty": 1},
        ),
        (["--repeat-penalty", "1.5"], {"repeat_penalty": 1.5}),
        (["--regex", "[a-c]{4}x"], {"regex": "[a-c]{4}x"}),
        (["--json-schema", '{"enum": ["aé"]}'], {"json_schema": {"enum": ["aé"]}}),
        (["--grammar", 'start: "a" "b"'], {"grammar": 'start: "a" "b"'}),
    ],
)
def test_a_flag_does_what_its_keyword_does(
    llm: LLM, run: Run, flags: list[str], options: Any
) -> None:
    if {"regex", "grammar", "json_schema"} & set(options):
        pytest.importorskip("llguidance")
    expected = llm.generate(PROMPT, max_tokens=24, **options)
    found = json.loads(run("--temp", "0", "--json", "-p", PROMPT, "-n", "24", *flags).out)
    assert (found["text"], found["tokens"]) == (expected.text, list(expected.tokens))
    assert ("logprobs" in found) == ("logprobs" in options)
    if expected.logprobs is not None:
        assert found["logprobs"][0]["logprob"] == expected.logprobs[0].logprob
        assert found["logprobs"][0]["top"] == [list(pair) for pair in expected.logprobs[0].top]


def test_no_part_of_a_stop_string_is_printed(llm: LLM, run: Run) -> None:
    text = llm.generate(PROMPT, max_tokens=24, stop="json.").text
    assert (
        run("--temp", "0", "-p", PROMPT, "-n", "24", "--stop", "json.").out == PROMPT + text + "\n"
    )


def test_settings_name_what_is_not_as_usual_in_a_line_each(run: Run) -> None:
    err = run("--temp", "0", "-p", "x", "-n", "1", "--stop", "a\nb" * 99, "--logit-bias", "5=1").err
    lines = [line for line in err.splitlines() if line.startswith(("main: stop", "main: logit"))]
    assert lines[0] == "main: logit_bias     = ((5, 1.0),)"
    assert lines[1].startswith("main: stop           = ('a\\nb")
    assert len(lines[1]) < 100
    assert "regex" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--logit-bias", "5"], "'--logit-bias': found '5', expected a token id and a number"),
        (["--logit-bias", "5=x"], "'--logit-bias': found '5=x', expected a token id and a number"),
        (["--logit-bias", "5=nan"], "logit_bias: found nan, expected a number from"),
        (["--logit-bias", "8192=1"], "logit_bias: found token id 8192, expected 0 to 8191"),
        (["--stop", ""], "stop: found an empty text, expected at least one character"),
        (["--logprobs", "21"], "'--logprobs': found '21', expected a whole number from 0 to 20"),
        (["--regex", "a", "--grammar", "b"], "regex and grammar: found 2 forms, expected one"),
        (["--min-p", "2"], "'--min-p': found '2', expected a number from 0 to 1"),
    ],
)
def test_a_flag_that_is_wrong_is_one_line(run: Run, flags: list[str], message: str) -> None:
    result = run("-p", "x", *flags)
    assert (result.code, result.out) == (2, "")
    assert message in result.err.splitlines()[-1]
