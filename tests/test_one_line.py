"""What is wrong is one line, wherever stderr leads, and numpy has nothing to add."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, FormatError, InputError, formats
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import Sampler
from tests.helpers.command import Run
from tests.helpers.gguf import write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


def starcoder(*args: str, stderr: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "starcoder", *args]
    if stderr is None:
        return subprocess.run(command, capture_output=True, text=True)
    with stderr.open("w") as file:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True)


# ------------------------------------------------------------------------------------------------
# A full stderr


@needs_full
def test_a_full_stderr_leaves_stdout_whole_and_is_told_by_the_code() -> None:
    args = ("-p", "def f(", "-n", "5", "--temp", "0")
    found, expected = starcoder(*args, stderr=FULL), starcoder(*args)
    assert (found.stdout, found.returncode) == (expected.stdout, 2)
    assert expected.returncode == 0
    found = starcoder(*args, "--json", stderr=FULL)
    assert len(json.loads(found.stdout)["tokens"]) == 5


@needs_full
@pytest.mark.parametrize("args", [["-m", "/no/such"], ["--nonsense"], ["quantize"], ["-n", "x"]])
def test_bad_input_is_code_2_on_a_full_stderr_too(args: list[str]) -> None:
    result = starcoder(*args, stderr=FULL)
    assert (result.returncode, result.stdout) == (2, "")


@needs_full
def test_a_file_is_written_though_nobody_can_be_told(tmp_path: Path, tiny: TinyModel) -> None:
    source, out = write_gguf(tmp_path / "in.gguf", tiny), tmp_path / "out.gguf"
    assert starcoder("quantize", str(source), str(out), "q8_0", stderr=FULL).returncode == 2
    assert formats.read(out).type_name == "q8_0"


@needs_full
def test_both_streams_may_be_full() -> None:
    with FULL.open("w") as full:
        command = [sys.executable, "-m", "starcoder", "-p", "x", "-n", "2"]
        assert subprocess.run(command, stdout=full, stderr=full).returncode == 2


# ------------------------------------------------------------------------------------------------
# numpy


@pytest.mark.parametrize("temperature", [0, 1e-300, 1, 1e6])
@pytest.mark.parametrize("penalty", [0.01, 0.5, 2, 100])
@pytest.mark.parametrize("size", [1, 1e30, 1e38, 3.4e38])
def test_logits_of_any_size_are_penalized_without_a_warning(
    size: float, penalty: float, temperature: float
) -> None:
    logits = (np.array([-1, 1, 0.5, -0.5, 0, 0.99]) * size).astype(np.float32)
    for top_k, top_p in ((0, 1), (2, 1), (0, 0.5)):
        sampler = Sampler(
            GenerationOptions(
                temperature=temperature,
                repeat_penalty=penalty,
                top_k=top_k,
                top_p=top_p,
                seed=0,
            )
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            token = sampler.sample(logits, [0, 1, 2, 3])
        assert 0 <= token < 6


def test_a_penalty_beyond_the_range_keeps_the_order_of_the_rest() -> None:
    logits = np.array([3e38, -3e38, 1e38, 0], np.float32)
    greedy = GenerationOptions(temperature=0, repeat_penalty=0.01)
    assert Sampler(greedy).sample(logits, [2]) == 2  # it is the likeliest now
    strict = GenerationOptions(temperature=0, repeat_penalty=100)
    assert Sampler(strict).sample(logits, [0, 1]) == 2


# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["loop.gguf", "ß" * 130 + ".gguf", "no/x.gguf", "folder"])
def test_a_name_that_cannot_be_written_is_one_line(
    run: Run, tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    source = write_gguf(tmp_path / "in.gguf", tiny)
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "folder").mkdir()
    result = run("convert", str(source), str(tmp_path / name), "--format", "gguf")
    errors = [line for line in result.err.splitlines() if "convert: " not in line]
    assert (result.code, len(errors)) == (2, 1)
    assert errors[0].startswith("starcoder: error: ")


# ------------------------------------------------------------------------------------------------
# Names and texts that are no line

ODD = os.fsdecode(b"a\nb\x1b[31m\xff\xc2\x9b\xe2\x80\xa8c")  # feeds, escapes, and a byte of no text


def test_an_error_is_one_printable_line_whatever_its_parts_hold() -> None:
    error = FormatError(ODD, ODD, ODD, ODD)
    assert str(error).isprintable()
    assert "a?b?[31m" in str(error)
    assert str(FormatError("größer", "代码", "y")) == "größer: found 代码, expected y"
    again = pickle.loads(pickle.dumps(error))
    assert (again.where, again.advice) == (ODD, ODD)
    assert str(again) == str(error)


def test_what_a_file_names_does_nothing_to_a_terminal(
    run: Run, tmp_path: Path, tiny: TinyModel
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "model.safetensors").unlink()
    placed = {"a": "\x1b[31mred.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    result = run("inspect", str(path))
    assert result.code == 2
    assert "?[31mred.safetensors: no such file" in result.err
    assert result.err.rstrip("\n").isprintable()


def test_a_notice_of_a_folder_with_an_odd_name_is_one_line(
    tmp_path: Path, tiny: TinyModel, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_hf(tmp_path / ODD, tiny)
    (path / "generation_config.json").write_text("nothing")
    assert formats.read(path).source == str(path)
    (message,) = caplog.messages
    assert message.isprintable()
    result = starcoder("inspect", str(path))
    assert result.returncode == 0
    (note,) = result.stderr.splitlines()
    assert note.startswith("starcoder: note: ")


def test_a_folder_with_an_odd_name_is_converted(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    path, out = write_hf(tmp_path / ODD, tiny), tmp_path / "x.gguf"
    assert run("convert", str(path), str(out)).code == 0
    assert formats.read(out).config.name.isprintable()


# ------------------------------------------------------------------------------------------------
# Arguments of another type


@pytest.mark.parametrize("path", [5, None, "", [], {}, 1.5])
def test_what_is_no_path_is_one_error(path: Any) -> None:
    with pytest.raises(InputError, match=r"^path: found .*, expected a path$"):
        formats.read(path)


def test_a_path_may_be_bytes(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny)
    assert formats.read(bytes(path)) == formats.read(path)


@pytest.mark.parametrize("pre", [["refact"], {}, 0, False, b"refact", np.array(["refact"])])
def test_a_pre_tokenizer_is_named_by_a_text(pre: Any) -> None:
    with pytest.raises(InputError, match=r"^pre: found [a-z]+, expected text"):
        LLM(pre=pre)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (("x", "3", "4", "do"), "x: found 3, expected 4; do"),
        (("x", "3", "4"), "x: found 3, expected 4"),
        (("x", "no such file", "a model"), "x: no such file, expected a model"),
        (("x", "not enough memory", "", "do"), "x: not enough memory; do"),
        (("x", "nothing", "4"), "x: found nothing, expected 4"),
    ],
)
def test_an_error_is_a_sentence_of_its_facts(facts: tuple[str, ...], line: str) -> None:
    assert str(InputError(*facts)) == line
