"""Text files as people have them: from Windows, with odd line breaks, and not text at all."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from starcoder import LLM
from tests.helpers.command import Result
from tests.helpers.command import Run as RunOf

TEXT = "# größe\ndef f(x):\n    return x"
ODD_BREAKS = ["\f", "\v", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r", "a\rb"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(n_threads=1)


@pytest.fixture(params=["file", "stdin"])
def echo(
    request: pytest.FixtureRequest, run: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bytes], Result]:
    """Run the command with a prompt of these bytes and generate nothing: stdout is the prompt."""

    def echo(raw: bytes) -> Result:
        if request.param == "stdin":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
            return run("-p", "-", "-n", "0")
        (tmp_path / "prompt").write_bytes(raw)
        return run("-f", str(tmp_path / "prompt"), "-n", "0")

    return echo


@pytest.mark.parametrize(
    "raw",
    [
        TEXT.encode(),
        TEXT.encode() + b"\n",
        TEXT.encode() + b"\r\n",
        TEXT.replace("\n", "\r\n").encode() + b"\r\n",
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig") + b"\r\n",
    ],
)
def test_a_prompt_is_the_same_wherever_its_file_was_saved(
    echo: Callable[[bytes], Result], llm: LLM, raw: bytes
) -> None:
    result = echo(raw)
    assert (result.code, result.out) == (0, TEXT + "\n")
    assert f"number of tokens in prompt = {len(llm.tokenize(TEXT))}\n" in result.err


def test_of_several_last_line_ends_one_goes(echo: Callable[[bytes], Result]) -> None:
    assert echo(b"x\r\n\r\n").out == "x\n\n"
    assert echo(b"\xef\xbb\xbf").out == echo(b"").out == "\n"


@pytest.mark.parametrize("text", ["x\ufeffy", "\ufeffx", "x\ufeff"])
def test_only_the_first_mark_goes(echo: Callable[[bytes], Result], text: str) -> None:
    assert echo(("\ufeff" + text).encode()).out == text + "\n"


@pytest.mark.parametrize("char", ODD_BREAKS)
def test_other_line_breaks_are_text_like_any_other(
    echo: Callable[[bytes], Result], char: str
) -> None:
    assert echo(f"x{char}y\n".encode()).out == f"x{char}y\n"


def test_text_in_arguments_and_python_stays_as_it_is(run: RunOf, llm: LLM) -> None:
    assert run("-p", "\ufeffa\r\n", "-n", "0").out == "\ufeffa\r\n\n"
    assert llm.detokenize(llm.tokenize("\ufeffa\r\n")) == "\ufeffa\r\n"


# ------------------------------------------------------------------------------------------------
# Tests of the tokenizer


def test_lines_of_a_token_test_end_at_line_feeds_alone(
    run: RunOf, llm: LLM, tmp_path: Path
) -> None:
    texts = ["def f(", *(f"a{char}b" for char in ODD_BREAKS), " => x", ""]
    lines = [f"{text} => {','.join(map(str, llm.tokenize(text)))}" for text in texts]
    lines[-2] = "x = 1 =>no test"
    for end in ("\n", "\r\n"):
        for mark in ("", "\ufeff"):
            (tmp_path / "tests").write_bytes((mark + end.join([*lines, ""])).encode())
            err = run("-tt", str(tmp_path / "tests"), "-p", "x", "-n", "0").err
            assert f"token test: 0 tests failed out of {len(texts) - 1} tests." in err


def test_a_token_test_that_fails_is_shown_in_full(run: RunOf, tmp_path: Path) -> None:
    (tmp_path / "tests").write_bytes(b"a\x0cb => 1\n")
    err = run("-tt", str(tmp_path / "tests"), "-p", "x", "-n", "0").err
    assert "token test: failed: 'a\\x0cb'" in err
    assert "1 tests failed out of 1 tests." in err


# ------------------------------------------------------------------------------------------------
# What comes before the facts


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-tt", "/no/such/file"], "-tt /no/such/file: no such file or directory"),
        (["-tt", "FOLDER"], "is a directory, expected a file that can be read"),
        (["-f", "FOLDER"], "is a directory, expected a file that can be read"),
        (["-f", "LOOP"], "too many levels of symbolic links"),
        (["-f", "UTF_16"], "UTF_16: found UTF-16 text, expected UTF-8; save it as UTF-8"),
        (["-tt", "NOT_UTF8"], "found byte 0xff at offset 0, expected UTF-8 text"),
        (["-tt", "NO_IDS"], "-tt line 2: found 'two', expected ids like 12,34,56"),
        (["-f", "LONG"], "prompt: found 5,000,000 characters, expected at most 256 tokens"),
        (["-p", "1" * 300], "prompt: found 300 tokens, expected at most 256"),
    ],
)
def test_what_is_wrong_with_text_is_the_only_line(
    run: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FOLDER").mkdir()
    Path("LOOP").symlink_to("LOOP")
    Path("NOT_UTF8").write_bytes(b"\xff")
    Path("UTF_16").write_bytes("größe".encode("utf-16"))
    Path("NO_IDS").write_text("a => 1\nb => two\n")
    Path("LONG").write_text("1234567890" * 500_000)
    prompt = [] if args[0] in ("-f", "-p") else ["-p", "x"]
    result = run(*prompt, *args, "-c", "256")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert message in result.err


def test_text_is_read_before_a_model_is(run: RunOf) -> None:
    """Of two mistakes the one that costs nothing to find comes first."""
    result = run("-m", "/no/such/model", "-tt", "/no/such/file", "-p", "x")
    assert "-tt /no/such/file" in result.err
    assert result.err.count("\n") == 1


def test_an_input_that_never_waits_is_no_crash(run: RunOf, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    with open(read) as stdin, open(write, "w"):
        monkeypatch.setattr(sys, "stdin", stdin)
        result = run("-p", "-", "-n", "1", "--json")
    assert (result.code, json.loads(result.out)["prompt_tokens"]) == (0, 1)
