"""What somebody who tries the program for the first time gets wrong, and what it says then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, InputError, pocket
from starcoder.convert.mix import all_mixes, find_mix
from starcoder.convert.type_plan import Choice, plan
from starcoder.formats import read
from starcoder.model.checkpoint import Checkpoint
from tests.helpers.command import Run
from tests.helpers.gguf import write_gguf
from tests.helpers.tiny import TinyModel, make_tiny

MODEL = str(pocket.PATH)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(n_threads=1, n_ctx=64)


def error_of(run: Run, *args: str) -> str:
    """The one line that a mistake is, without the program's name."""
    result = run(*args)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    return result.err.removeprefix("starcoder: error: ").rstrip("\n")


# ------------------------------------------------------------------------------------------------
# How a command is called


def test_words_after_a_prompt_without_quotes_are_explained(run: Run) -> None:
    error = error_of(run, "-p", "def", "f")
    assert error == (
        "command line: found 'f', expected a command (convert, quantize, inspect, bench); "
        "a prompt of several words goes in quotes, as in -p 'def f'"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-ngl", "3"], "No such option: -ngl; GPUs are not supported; see starcoder --help"),
        (["-ngl99"], "No such option: -ngl; GPUs are not supported; see starcoder --help"),
        (["-np", "1"], "No such option: -np; LLM.generate of the Python package takes many"),
        (["-n", "gl"], "'-n' / '--n-predict': found 'gl', expected a whole number"),
    ],
)
def test_options_of_llama_cpp_are_named_and_not_read_as_ours(
    run: Run, args: list[str], message: str
) -> None:
    assert message in error_of(run, *args)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["quantize", "a", "q4_0"], ["'TYPE'", "IN", "OUT", "see starcoder quantize --help"]),
        (["convert", "a"], ["'OUT'", "SRC", "see starcoder convert --help"]),
        (["inspect"], ["'FILE'", "usage: starcoder inspect", "see starcoder inspect --help"]),
        (["bench", "--fast"], ["--fast", "see starcoder bench --help"]),
        (["bench", "-p", "abc"], ["found 'abc', expected a whole number from 1 to"]),
        (["convert", "a", "b", "-t", "0"], ["found '0', expected a whole number from 1 to 1024"]),
    ],
)
def test_a_command_called_wrongly_points_to_its_own_help(
    run: Run, args: list[str], words: list[str]
) -> None:
    error = error_of(run, *args)
    for word in words:
        assert word in error


def test_a_file_of_token_tests_without_a_test_is_a_mistake(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tests"
    file.write_text("def f( = 1,2\n\n")
    assert error_of(run, "-tt", str(file)) == (
        f"-tt {file}: no test, expected lines of text => id,id,id"
    )


@pytest.mark.parametrize("empty", [["-p", ""], ["-f", "/dev/null"]])
def test_an_empty_prompt_is_said_to_be_one(run: Run, empty: list[str]) -> None:
    note = "starcoder: note: the prompt is empty; the text starts at the beginning of a document\n"
    result = run(*empty, "-n", "1")
    assert (result.code, result.err.count(note)) == (0, 1)
    assert note not in run("-p", "x", "-n", "1").err


def test_a_dash_as_a_file_is_told_the_option_that_reads_stdin(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such file or directory" in error_of(run, "-f", "-")
    assert error_of(run, "-f", "-").endswith("; use -p - for stdin")


# ------------------------------------------------------------------------------------------------
# Types, sizes, folders


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["q4"], "TYPE: found 'q4', expected the name of a type; did you mean q4_0, q4_1, q4_k,"),
        (["Q5_K_XL"], "TYPE: found 'Q5_K_XL', expected the name of a type; did you mean q5_k?"),
        (["tiny"], "TYPE: found 'tiny', expected f32 f16"),
        (["q4_0", "--output-type", "q8"], "--output-type: found 'q8', expected the name of a type"),
        (["q4_0", "--embedding-type", ""], "--embedding-type: found '', expected f32"),
        (["q4_0", "--tensor-type", "ffn=q4_k_m"], "--tensor-type: found 'q4_k_m'"),
    ],
)
def test_a_type_of_no_such_name_has_its_neighbours_suggested(
    run: Run, args: list[str], message: str
) -> None:
    assert message in error_of(run, "quantize", MODEL, "x.gguf", *args)


def test_the_help_of_quantize_lists_every_type(run: Run) -> None:
    words = run("quantize", "--help").out.replace(",", " ").split()
    assert {mix.name for mix in all_mixes()} <= set(words)


def test_sizes_of_parts_end_in_gb_or_g(run: Run, tmp_path: Path, tiny: TinyModel) -> None:
    source, out = str(write_gguf(tmp_path / "x.gguf", tiny)), str(tmp_path / "y.gguf")
    error = error_of(run, "convert", source, out, "--split-max-size", "1.5G")
    expected = "expected a whole number and M or G (powers of ten), like 500M"
    assert error == f"--split-max-size: found '1.5G', {expected}"
    for size in ("4GB", "4G", "500mb"):
        result = run("convert", source, out, "--split-max-size", size)
        assert result.code == 0
        assert f"wrote 1 part, {tmp_path}/y-00001-of-00001.gguf\n" in result.err


@pytest.mark.parametrize("options", [[], ["--split-max-size", "1G"]])
def test_a_missing_folder_is_named(run: Run, tmp_path: Path, options: list[str]) -> None:
    folder = tmp_path / "none"
    error = run("convert", MODEL, str(folder / "x.gguf"), *options).err.splitlines()[-1]
    assert error.endswith(f": no folder {folder}, expected one that exists; make it first")


def test_two_types_for_the_matrix_of_a_tied_model_are_explained(run: Run, tmp_path: Path) -> None:
    options = ["--output-type", "q8_0", "--embedding-type", "q4_0"]
    error = error_of(run, "quantize", MODEL, str(tmp_path / "x.gguf"), "q4_0", *options)
    assert "found a model whose output matrix is its embedding, expected one of" in error


def test_what_rows_do_not_allow_is_one_line_for_all_tensors(checkpoint: Checkpoint) -> None:
    _, notes = plan(checkpoint, Choice(mix=find_mix("q4_k")))
    n_matrices = sum(1 for name in checkpoint.tensors if "ffn_up.weight" in name)
    assert n_matrices > 1
    assert len(notes) < len(checkpoint.tensors) // 4
    assert any("tensors with rows of 32 are " in note for note in notes)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: TinyModel) -> Checkpoint:
    return read(write_gguf(tmp_path / "x.gguf", tiny))


# ------------------------------------------------------------------------------------------------
# Damaged and whole models


def test_damaged_logits_are_said_on_a_line_of_their_own(run: Run, tmp_path: Path) -> None:
    model = make_tiny()
    model.weights["output_norm.weight"][:] = np.nan
    path = str(write_gguf(tmp_path / "x.gguf", model))
    result = run("-m", path, "-p", "def f", "-n", "3")
    assert (result.code, result.out) == (2, "def f\n")
    error = result.err.splitlines()[-1]
    assert "that are NaN or infinite, expected finite numbers" in error
    assert "starcoder inspect FILE --check names the tensor" in error
    assert "tensor output_norm.weight" in run("inspect", path, "--check").err


def test_a_whole_model_is_said_to_be_checked(run: Run) -> None:
    text = run("inspect", MODEL, "--check").out
    n = json.loads(run("inspect", MODEL, "--json").out)["n_parameters"]
    assert text.endswith(f"check          all {n:,} weights are finite\n")


def test_ends_of_text_are_a_list_in_json_and_joined_in_text(
    run: Run, tmp_path: Path, tiny: TinyModel
) -> None:
    path = str(write_gguf(tmp_path / "x.gguf", tiny))
    vocabulary = json.loads(run("inspect", path, "--json").out)["vocabulary"]
    assert vocabulary["end_ids"] == sorted(read(Path(path)).vocab.end_ids)
    line = f"end_ids        {', '.join(map(str, vocabulary['end_ids']))}\n"
    assert line in run("inspect", path).out


# ------------------------------------------------------------------------------------------------
# From Python


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        (
            "logits",
            "def f",
            "found str, expected a list of token ids (whole numbers); llm.tokenize",
        ),
        ("detokenize", "def f", "expected a list of token ids (whole numbers); llm.tokenize"),
        ("detokenize", [1, "x"], "tokens: found 'x' at index 1, expected whole numbers"),
        ("logits", [1, 2.5], "tokens: found 2.5 at index 1, expected whole numbers"),
        ("stream", ["a", "b"], "stream() takes one prompt; generate() takes a list"),
        ("stream", [[1], [2]], "stream() takes one prompt; generate() takes a list"),
        ("generate", 5, "found int, expected text, a list of token ids, or a list of these"),
        ("generate", {1}, "found set, expected text, a list of token ids, or a list of these"),
        ("generate", iter(["a"]), "expected text, a list of token ids, or a list of these"),
        ("generate", [1, "a"], "prompt: found 'a' at index 1, expected whole numbers"),
    ],
)
def test_arguments_of_another_kind_say_what_goes_there(
    llm: LLM, method: str, argument: Any, message: str
) -> None:
    with pytest.raises(InputError) as error:
        getattr(llm, method)(argument)
    assert message in str(error.value)


def test_options_have_the_bounds_of_the_command_line(llm: LLM, run: Run) -> None:
    with pytest.raises(InputError, match="found 'hot', expected a number, at least 0"):
        llm.generate("x", temperature="hot")  # type: ignore[call-overload]
    for too_many in (1 << 31, -1):
        with pytest.raises(InputError, match="a whole number from 0 to 2147483647"):
            llm.generate("x", max_tokens=too_many)
    assert "a whole number from 0 to 2147483647" in error_of(run, "-n", str(1 << 31))


def test_a_seed_of_minus_one_is_random(llm: LLM) -> None:
    wild: dict[str, Any] = {
        "temperature": 2.0,
        "top_k": 0,
        "top_p": 1.0,
        "max_tokens": 20,
        "seed": -1,
    }
    texts = {llm.generate("x", **wild).text for _ in range(3)}
    assert len(texts) == 3
    with pytest.raises(InputError, match="from -1 to"):
        llm.generate("x", seed=-2)
