"""The model in the package: it is there, it is small, and it writes the same Python everywhere."""

from __future__ import annotations

import ast
import inspect

import pytest

from starcoder import LLM, pocket

PREFIX, SUFFIX = "def area(width, height):\n    return ", "\n\n\ndef volume("
GREEDY = {
    "def fibonacci(": "self, *args: Any) -> None:\n    return",
    "import ": " # type: ignore[arg-type]\n        return _",
    f"<fim_prefix>{PREFIX}<fim_suffix>{SUFFIX}<fim_middle>": "width, width)",
    f"<fim_prefix><fim_suffix>{SUFFIX}<fim_middle>{PREFIX}": "100000000000",
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def test_it_is_the_default_and_fits_into_a_wheel() -> None:
    assert inspect.signature(LLM).parameters["model"].default == pocket.PATH
    assert pocket.PATH.stat().st_size <= 8_000_000


def test_it_is_a_starcoder_with_all_of_its_special_tokens(llm: LLM) -> None:
    assert (llm.facts.architecture, llm.facts.n_kv_heads) == ("gpt_bigcode", 1)
    assert llm.facts.max_ctx >= 1024
    names = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]
    assert llm.tokenize("".join(names)) == [0, 1, 2, 3, 4]
    assert len(llm.tokenize("<filename><gh_stars><reponame>")) == 3
    assert len(llm.tokenize("2026")) == 4, "digits are single"


@pytest.mark.parametrize("prompt", GREEDY)
def test_it_writes_the_same_on_every_instruction_set(isa: str, prompt: str) -> None:
    text = LLM().generate(prompt, max_tokens=12).text
    assert text == GREEDY[prompt], isa


@pytest.mark.parametrize("header", ["def is_even(n):", "def add(a, b):", "def read_json(path):"])
def test_what_it_writes_is_a_function_that_ends(llm: LLM, header: str) -> None:
    completion = llm.generate(header, max_tokens=96)
    assert completion.finish_reason == "stop"
    [function] = ast.parse(header + completion.text).body
    assert isinstance(function, ast.FunctionDef)
    assert isinstance(function.body[-1], ast.Return)
