"""What is measured of the small model, and the card that says it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.helpers.training import ADD, small_tokenizer
from training import card, corpus, measure, report, verbatim
from training.corpus import File


@pytest.fixture
def bpe() -> Tokenizer:
    return small_tokenizer()


# ---- passages ----


def test_passages_are_found_where_they_stand_and_nowhere_else(bpe: Tokenizer) -> None:
    rng = random.Random(1)
    words = [f"{''.join(rng.choices('abcdefgh', k=9))} = {rng.random()}\n" for _ in range(60)]
    files = [
        File("one", "a.py", "".join(words[:20])),
        File("two", "b.py", "".join(words[10:40])),
    ]
    copied, both, new = "".join(words[2:8]), "".join(words[12:18]), "".join(words[45:])
    short = words[25]
    found = verbatim.search([new + copied + new, both, new, short], files, bpe)
    [passage] = found[0]
    n = len(bpe.encode(copied).ids)
    assert n <= passage["tokens"] <= n + 3
    assert passage["packages"] == ["one"]
    assert found[1][0]["packages"] == ["one", "two"]
    assert found[2:] == [[], []]
    notice = File("three", "c.py", "# Copyright: " + "".join(words[40:44]))
    zeros = File("four", "d.py", "x = " + "0" * 300)
    kinds = [
        passage["kind"]
        for passages in verbatim.search(
            [copied, notice.text, zeros.text], [*files, notice, zeros], bpe
        )
        for passage in passages
    ]
    assert kinds == ["text", "notice", "run"]
    assert verbatim.hashes(np.zeros(verbatim.PASSAGE - 1, np.uint16)).size == 0


def test_half_of_the_prompts_are_headers(bpe: Tokenizer) -> None:
    files = [File("p", f"{i}.py", f"x = {i}\n" + ADD * 9) for i in range(20)]
    asked = verbatim.prompts(files, 10, bpe)
    assert len(asked) == 10
    assert sum(prompt.startswith("def add(a, b):") for prompt in asked) == 5


# ---- measures ----


class Uniform:
    """A model that knows nothing: every token costs the same, whatever the window."""

    facts = SimpleNamespace(max_ctx=1024)

    def tokenize(self, text: str) -> list[int]:
        return [0] if text == "<|endoftext|>" else list(text.encode())

    def logits(self, tokens: list[int]) -> np.ndarray:
        assert len(tokens) <= 1024
        return np.zeros((len(tokens), 256), np.float32)


@pytest.mark.parametrize("n", [1, 511, 1023, 1024, 1025, 1536, 5000])
def test_every_byte_is_paid_for_once_whatever_the_windows(n: int) -> None:
    llm: Any = Uniform()
    bits = measure.bits_per_byte(llm, [File("p", "a.py", "x" * n)])
    assert bits == pytest.approx(8 * (n + 1) / n)  # n bytes and the end


def test_xz_is_charged_as_the_program_would_be() -> None:
    files = [File("p", f"{i}.py", ADD) for i in range(10)]
    sizes = measure.xz_bits_per_byte(files)
    alone, together = sizes.values()
    assert together < alone / 5


@pytest.mark.parametrize(
    ("text", "indent", "kept", "ended"),
    [
        ("    return 1\n\nclass A:\n", 0, "    return 1\n\n", True),
        ("    x = (\n1)\n    return x\ny\n", 0, "    x = (\n1)\n    return x\n", True),
        (
            "        a\n    # no end\n        b\n    def",
            4,
            "        a\n    # no end\n        b\n    def",
            False,
        ),
        ("    return 1\n", 0, "    return 1\n", False),
    ],
)
def test_a_function_ends_where_its_block_does(
    text: str, indent: int, kept: str, ended: bool
) -> None:
    assert measure.block(text, indent) == (kept, ended)


def test_functions_are_asked_for_up_to_their_body() -> None:
    text = "import os\n\n\nclass A:\n" + "".join("    " + line for line in ADD.splitlines(True))
    [function] = measure.functions([File("p", "a.py", text)])
    assert function.prompt.endswith('last."""')
    assert function.header.startswith("    def add")
    assert measure.parse(function, "\n        return a\n")
    assert not measure.parse(function, "\n        return a +\n")


def test_lines_are_cut_out_whole() -> None:
    text = "".join(f"if True:\n    the_value_of_{i} = {i}\n" for i in range(100))
    for line in measure.lines([File("p", "a.py", text)])[::5]:
        assert text.startswith(line.prefix)
        assert not line.prefix[-1].isspace()
        assert text.endswith(line.suffix)
        cut_out = text[len(line.prefix) : -len(line.suffix)]
        assert (cut_out.strip(), cut_out[0]) == (line.middle, "\n")


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("a", "b", 1)]
)
def test_edit_distance_is_levenshteins(a: str, b: str, distance: int) -> None:
    assert measure.edit_distance(a, b) == distance == measure.edit_distance(b, a)


def test_every_everyday_prompt_is_answered() -> None:
    def generate(prompts: list[str], max_tokens: int) -> list[Any]:
        return [SimpleNamespace(text=" x", finish_reason="length") for _ in prompts]

    llm: Any = SimpleNamespace(generate=generate)
    answers = measure.everyday(llm)
    assert len(answers) == 20
    assert answers[0] == {"prompt": "def fibonacci(", "text": " x", "finish_reason": "length"}


# ---- the card ----


def test_a_figure_is_made_once_for_each_model(tmp_path: Path) -> None:
    made: list[str] = []
    for of in ("a", "a", "b"):
        report.Measurements(tmp_path / "m.json").keep("bytes", "q4_0", of, made.append, of)
    assert made == ["a", "b"]
    kept = json.loads((tmp_path / "m.json").read_text())
    assert kept == {"bytes": {"q4_0": {"of": "b", "value": None}}}


def test_the_card_says_what_was_measured() -> None:
    text = card.CARD.read_text(encoding="utf-8")
    assert text == card.render()
    figures = json.loads(card.MEASUREMENTS.read_text())
    shipped = figures["shipped"]["type"]["value"]
    assert f"{figures['functions'][shipped]['value']['parse']:.1%}" in text
    for one in corpus.read_lock():
        assert f"{one.name} {one.version}" in text or one.name == "python"
        if one.split == "algorithms":
            assert f"**{one.name}**" in text, "the card says what it quotes"
