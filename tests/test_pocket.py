"""The model in the package: it is small, writes Python that ends, and the same everywhere."""

from __future__ import annotations

import ast
import inspect

import pytest

from starcoder import LLM, pocket
from starcoder.core import ops

FIBONACCI = "def fibonacci("
POINT = "class Point:\n    def __init__(self, x, y):\n        self.x = ", "\n        self.y = y\n"
GREETING = "def greet(name):\n    print(f'Hello, {", "}!')\n"

HARMLESS = {ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.If, ast.Return, ast.Constant}
HARMLESS |= {ast.Name, ast.Load, ast.Compare, ast.BoolOp, ast.BinOp, ast.Call, ast.Or, ast.Add}
HARMLESS |= {ast.Sub, ast.Eq, ast.Lt, ast.LtE, ast.Expr}


def suffix_first(prefix: str, suffix: str) -> str:
    return f"<fim_prefix><fim_suffix>{suffix}<fim_middle>{prefix}"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def test_it_is_the_default_and_fits_into_a_wheel() -> None:
    assert inspect.signature(LLM).parameters["model"].default == pocket.PATH
    assert pocket.PATH.stat().st_size <= 25_000_000


def test_it_is_a_starcoder_with_all_of_its_special_tokens(llm: LLM) -> None:
    assert (llm.facts.architecture, llm.facts.n_kv_heads) == ("gpt_bigcode", 1)
    assert llm.facts.max_ctx >= 2048
    names = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"]
    assert llm.tokenize("".join(names)) == [0, 1, 2, 3, 4]
    assert len(llm.tokenize("<filename><gh_stars><reponame>")) == 3
    assert len(llm.tokenize("2026")) == 4, "digits are single"


@pytest.mark.usefixtures("core_restored")
def test_it_writes_the_same_on_every_instruction_set() -> None:
    prompts = [FIBONACCI, "import ", suffix_first(*POINT)]
    usual, written = ops.isa(), {}
    for isa in ops.available_isas():
        ops.use_isa(isa)
        written[isa] = [c.tokens for c in LLM().generate(prompts, max_tokens=12)]
    assert all(tokens == written[usual] for tokens in written.values())
    assert all(map(any, written[usual]))


@pytest.mark.parametrize(
    "header", ["def read_file(path):", "def read_json(path):", "def write_text(path, text):"]
)
def test_it_writes_functions_that_end_and_parse(llm: LLM, header: str) -> None:
    completion = llm.generate(header, max_tokens=96)
    assert completion.finish_reason == "stop"
    [function] = ast.parse(header + completion.text).body
    assert isinstance(function, ast.FunctionDef)
    arguments = {argument.arg for argument in function.args.args}
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    assert arguments <= names, "each argument is used"


def test_what_it_writes_of_fibonacci_is_right(llm: LLM) -> None:
    source = FIBONACCI + llm.generate(FIBONACCI, max_tokens=96).text
    assert set(map(type, ast.walk(ast.parse(source)))) <= HARMLESS, "nothing else is run"
    space: dict[str, object] = {}
    exec(compile(ast.parse(source), "fibonacci", "exec"), space)
    assert [eval(f"fibonacci({n})", space) for n in range(8)] == [0, 1, 1, 2, 3, 5, 8, 13]


@pytest.mark.parametrize(
    ("gap", "answer"), [(POINT, "x"), (GREETING, "name")], ids=["attribute", "argument"]
)
def test_it_fills_a_gap_that_has_one_answer(llm: LLM, gap: tuple[str, str], answer: str) -> None:
    text = llm.generate(suffix_first(*gap), max_tokens=16).text
    assert text.splitlines()[0].startswith(answer)
