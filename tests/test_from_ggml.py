"""Who comes from ggml's example finds every command, under its own name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from starcoder import formats
from starcoder.convert.mix import _GGML_NUMBERS
from starcoder.core.tensor import TensorType
from tests.helpers.command import Result
from tests.helpers.gguf import write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "from-ggml.md").read_text()
MAINS = {"starcoder": "main", "starcoder-quantize": "quantize_main"}


def run(folder: Path, program: str, *args: str) -> Result:
    """As pip's script runs it."""
    code = f"from starcoder.cli import {MAINS[program]} as main; main()"
    command = [sys.executable, "-c", code, *args]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return Result(result.returncode, result.stdout, result.stderr)


@pytest.fixture
def folder(tmp_path: Path, tiny: TinyModel) -> Path:
    write_gguf(tmp_path / "in.gguf", tiny)
    return tmp_path


def test_both_commands_are_installed_with_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    scripts = dict(re.findall(r'^([\w-]+) = "starcoder\.cli:(\w+)"$', text, re.MULTILINE))
    assert scripts == MAINS


@pytest.mark.parametrize("commands", re.findall(r"\n```\n(.*?)```", PAGE, re.DOTALL))
def test_the_commands_of_the_page_run_in_their_order(
    tmp_path: Path, tiny: TinyModel, commands: str
) -> None:
    """With a directory in the place of the Hub id: what exists is never looked for there."""
    (tmp_path / "bigcode").mkdir()
    write_hf(tmp_path / "bigcode" / "gpt_bigcode-santacoder", tiny)
    for line in commands.splitlines():
        program, *args = shlex.split(line)
        if program == "mkdir":
            os.makedirs(tmp_path / args[-1])
            continue
        result = run(tmp_path, program, *args)
        assert result.code == 0, result.err
    assert result.out.startswith("def fibonnaci(")
    names = {path.name for path in tmp_path.rglob("*.bin")} | {
        p.name for p in tmp_path.glob("*.gguf")
    }
    assert names >= set(re.findall(r"[\w-]+\.(?:bin|gguf)", commands))


def test_the_page_has_every_option_and_number() -> None:
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", PAGE))
    shared = {"-s", "--seed", "-t", "--threads", "-p", "--prompt", "-f", "--file", "-n"}
    shared |= {"--n_predict", "--top_k", "--top_p", "--temp", "--repeat-last-n", "-b", "-c"}
    shared |= {"--repeat-penalty", "--batch_size", "--context", "--ignore-eos", "-m", "--model"}
    assert shared | {"-tt", "--token_test"} <= options
    numbers, _, names = re.findall(r"^\| .* \|$|^\|---.*$", PAGE.split("## The types")[1], re.M)
    found = dict(zip(numbers.strip("| ").split(" | "), names.strip("| ").split(" | "), strict=True))
    assert found == _GGML_NUMBERS


@pytest.mark.parametrize(("number", "kind"), [("2", "Q4_0"), ("q8_0", "Q8_0"), ("Q5_1", "Q5_1")])
def test_starcoder_quantize_writes_what_starcoder_quantize_writes(
    folder: Path, number: str, kind: str
) -> None:
    result = run(folder, "starcoder-quantize", "in.gguf", "a.gguf", number, "-t", "1")
    assert (result.code, result.out) == (0, "")
    assert "quant size = " in result.err
    assert run(folder, "starcoder", "quantize", "in.gguf", "b.gguf", number).code == 0
    assert (folder / "a.gguf").read_bytes() == (folder / "b.gguf").read_bytes()
    found = formats.read(folder / "a.gguf").tensors["blk.0.ffn_up.weight"].type
    assert found is TensorType[kind]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument 'IN'; usage: starcoder-quantize [OPTIONS] IN OUT TYPE; see "),
        (["in.gguf", "x.gguf"], "Missing argument 'TYPE'; usage: starcoder-quantize"),
        (["in.gguf", "x.gguf", "4"], "TYPE: found '4', expected f32 f16"),
        (["none.bin", "x.bin", "2"], "none.bin: no such file"),
        (["in.gguf", "x.gguf", "2", "3"], "unexpected extra argument"),
        (["in.gguf", "x.gguf", "2", "--tensor_type", "nope=q8_0"], "nope=q8_0: no tensor"),
        (["in.gguf", "x.gguf", "2", "-t", "0"], "see starcoder-quantize --help"),
    ],
)
def test_its_errors_have_its_name(folder: Path, args: list[str], message: str) -> None:
    result = run(folder, "starcoder-quantize", *args)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert result.err.startswith("starcoder-quantize: error: ")
    assert message in result.err
    assert not (folder / "x.gguf").exists()


def test_its_help_says_what_ggmls_numbers_are_for(folder: Path) -> None:
    for flag in ("-h", "--help"):
        result = run(folder, "starcoder-quantize", flag)
        assert (result.code, result.err) == (0, "")
        assert "starcoder-quantize" in result.out
        assert "ggml's number" in result.out
