"""The command line over a small real model, run in this process; `test_program` runs it as one."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from starcoder import LLM, __version__, pocket
from tests.helpers.command import Result, Run


@pytest.fixture(scope="module")
def model(data: Path) -> str:
    return str(data / "gpt_bigcode-q4_0.gguf")


@pytest.fixture
def run(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command with the small model, greedy and short unless said otherwise."""

    def run_small(*args: str, stdin: bytes = b"", defaults: bool = True) -> Result:
        first = ["-m", model, "--temp", "0", "-n", "8"] if defaults else []
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return run(*first, *args)

    return run_small


def greedy(model: str, prompt: str, n: int = 8) -> str:
    return LLM(model).generate(prompt, max_tokens=n).text


# What comes out ------------------------------------------------------------------------------


def test_stdout_is_the_prompt_and_its_continuation(run: Run, model: str) -> None:
    result = run("-p", "def f(")
    assert (result.code, result.out) == (0, "def f(" + greedy(model, "def f(") + "\n")


def test_stderr_has_facts_settings_and_times(run: Run, model: str) -> None:
    err = run("-p", "def f(", "--top_k", "7", "-s", "3").err
    for line in [
        f"model      = {model} (GGUF v3",
        "n_vocab    = 1024",
        "n_ctx      = 512",
        "n_embd     = 256",
        "n_head     = 4",
        "n_layer    = 2",
        "type       = q4_0",
        "seed = 3",
        "top_k          = 7",
        f"number of tokens in prompt = {len(LLM(model).tokenize('def f('))}",
    ]:
        assert line in err
    for name in ["load", "sample", "prompt", "predict", "total"]:
        assert re.search(rf"main: +{name} time = +[0-9.]+ ms", err), name
    assert len(re.findall(r"[0-9.]+ ms per token / [0-9.]+ tokens per second", err)) == 2
    assert re.search(r"peak memory = +[0-9.]+ MB", err)


def test_stderr_says_why_there_are_fewer_threads_than_cpus(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert "threads    = 1 of 4 CPUs: affinity to 1 CPU (" in run("-p", "x", "-n", "1").err
    err = run("-p", "x", "-n", "1", "-t", "3").err
    assert "threads    = 1 of the 3 asked for: affinity to 1 CPU (" in err
    assert "threads    = 1 (" in run("-p", "x", "-n", "1", "-t", "1").err


def test_json_is_one_object_and_nothing_else(run: Run, model: str) -> None:
    result = run("-p", "def f(", "--json")
    answer = json.loads(result.out)
    expected = LLM(model).generate("def f(", max_tokens=8)
    assert list(answer)[:3] == ["text", "tokens", "prompt_tokens"]
    assert {"cached_tokens", "finish_reason", "timings"} <= set(answer)
    assert (answer["text"], answer["tokens"]) == (expected.text, list(expected.tokens))
    found = answer["prompt_tokens"], answer["finish_reason"]
    assert found == (expected.prompt_tokens, "length")
    assert answer["timings"]["predict_ms"] > 0


def test_the_seed_that_is_printed_repeats_the_text(run: Run) -> None:
    sampled = ["-p", "def f(", "--temp", "1.5", "-n", "30"]
    first = run(*sampled)
    (seed,) = re.findall(r"seed = (\d+)", first.err)
    assert run(*sampled, "-s", seed).out == first.out
    assert run(*sampled, "--seed", "-1").out != first.out


# Options -------------------------------------------------------------------------------------


def test_every_option_of_ggml_is_there_with_dashes_and_underscores(
    run: Run, tmp_path: Path
) -> None:
    tests = tmp_path / "tests"
    tests.write_text("x => 1\n")
    expected = run("-s", "1", "-n", "5", "-p", "x", "--temp", "1", "--ignore-eos").out
    for style in ("-", "_"):
        args = ["--seed", "1", "--threads", "1", "--prompt", "x", "--n_predict", "5"]
        args += ["--top_k", "40", "--top_p", "0.9", "--temp", "1.0", "--batch_size", "8"]
        args += ["--context", "100", "--repeat-last-n", "64", "--repeat-penalty", "1.0"]
        args += ["--ignore-eos", "--token_test", str(tests)]
        args = [re.sub("(?<=[a-z])[-_]", style, a) if a.startswith("--") else a for a in args]
        assert run(*args).out == expected
    assert run("-s1", "-t", "2", "-px", "-n5", "-c100", "-b", "4", "-tt", str(tests)).code == 0


def test_the_defaults_are_those_of_ggml(run: Run, model: str) -> None:
    err = run("-m", model, "-p", "x", "--ignore-eos", defaults=False).err
    for line in ["temp           = 1.000", "top_k          = 40", "top_p          = 0.900"]:
        assert line in err
    assert "repeat_last_n  = 64" in err
    assert "repeat_penalty = 1.000" in err
    answer = run("-m", model, "-p", "x", "--ignore-eos", "--json", defaults=False).out
    assert len(json.loads(answer)["tokens"]) == 200


def test_a_prompt_comes_from_stdin_or_a_file_without_its_last_newline(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.py"
    file.write_text("größe = 1\n\n")
    expected = run("-p", "größe = 1\n").out
    assert run("-f", str(file)).out == expected
    assert run("-p", "-", stdin="größe = 1\n\n".encode()).out == expected


def test_without_a_prompt_there_is_one_that_the_seed_chooses(run: Run) -> None:
    texts = {run("-n", "0", "-s", str(seed)).out for seed in range(12)}
    assert len(texts) > 2
    assert min(map(len, texts)) > 5
    assert run("-n", "0", "-s", "3").out == run("-n", "0", "-s", "3").out


def test_a_prompt_may_be_empty_or_look_like_an_option(run: Run) -> None:
    assert run("-p", "").code == 0
    assert run("-p", "--help", "-n", "0").out == "--help\n"


def test_end_tokens_end_the_text_unless_ignored(run: Run, model: str) -> None:
    wild = ["-p", "def ", "--temp", "1.5", "--top-k", "0", "--top-p", "1", "-n", "400", "--json"]
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_tokens": 400}
    llm = LLM(model)
    seeds = range(100)
    seed = next(s for s in seeds if llm.generate("def ", seed=s, **options).finish_reason == "stop")
    stopped = json.loads(run(*wild, "-s", str(seed)).out)
    ignored = json.loads(run(*wild, "-s", str(seed), "--ignore-eos").out)
    assert stopped["finish_reason"] == "stop"
    assert ignored["tokens"][: len(stopped["tokens"]) + 1] == [*stopped["tokens"], 0]


def test_token_tests_are_counted_and_generation_goes_on(
    run: Run, model: str, tmp_path: Path
) -> None:
    ids = ",".join(map(str, LLM(model).tokenize("def f(")))
    file = tmp_path / "tests"
    file.write_text(f"def f( => {ids}\nno test\nx => 1,2,3\n")
    result = run("-tt", str(file), "-p", "def f(")
    assert "1 tests failed out of 2 tests." in result.err
    assert "failed: 'x'" in result.err
    assert result.out.startswith("def f(")


def test_help_and_version(run: Run) -> None:
    for flag in ("-h", "--help"):
        assert "--n-predict" in run(flag, defaults=False).out
    assert run("--version", defaults=False) == (0, f"starcoder {__version__}\n", "")


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-n", "-4"], "'-n' / '--n-predict': found '-4', expected a whole number from 0"),
        (["-n", "many"], "'-n' / '--n-predict': found 'many'"),
        (["-t", "0"], "'--threads': found '0'"),
        (["-b", "0"], "'--batch-size': found '0'"),
        (["-s", "-2"], "'--seed': found '-2'"),
        (["--temp", "nan"], "'--temp': found 'nan'"),
        (["--temp", "-1"], "'--temp': found '-1'"),
        (["--top_p", "1.5"], "'--top-p': found '1.5', expected a number from 0 to 1"),
        (["--top_k", "-1"], "'--top-k': found '-1'"),
        (["--repeat-last-n", "-2"], "'--repeat-last-n': found '-2'"),
        (["--repeat-penalty", "0"], "'--repeat-penalty': found '0'"),
        (["-c", "513", "-p", "x"], "found 513, expected a whole number from 1 to 512"),
        (["-c", "4", "-p", "a b c d e f g"], "tokens, expected at most 4"),
        (["--nonsense"], "No such option: --nonsense"),
        (["nonsense"], "command line: found 'nonsense', expected a command (convert, quantize,"),
        (["-p"], "'-p' requires an argument"),
        (["-p", "a", "-f", "b"], "-p and -f: found both, expected one prompt"),
        (["-f", "/no/such/file"], "-f /no/such/file: no such file or directory"),
        (["-f", "/"], "-f /: found is a directory"),
        (["-tt", "/no/such/file"], "-tt /no/such/file: no such file"),
        (["-m", "/no/such/model"], "/no/such/model: no such file"),
        (["-p", "\udcff"], "-p: found byte 0xff at offset 0, expected UTF-8 text"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(run: Run, args: list[str], message: str) -> None:
    result = run(*args)
    assert (result.code, result.out) == (2, "")
    last = result.err.splitlines()[-1]
    assert last.startswith("starcoder: error: ")
    assert message in last
    assert "Traceback" not in result.err


def test_without_a_model_the_one_in_the_package_runs(run: Run) -> None:
    result = run("-p", "import ", "-n", "4", "--temp", "0", defaults=False)
    assert (result.code, result.out) == (
        0,
        "import " + greedy(str(pocket.PATH), "import ", 4) + "\n",
    )
    assert f"model      = {pocket.PATH}" in result.err


def test_prompts_that_are_no_text_are_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "latin1"
    file.write_bytes(b"gr\xf6\xdfe")
    for result in (run("-f", str(file)), run("-p", "-", stdin=file.read_bytes())):
        assert result.code == 2
        assert "found byte 0xf6 at offset 2, expected UTF-8 text" in result.err
    assert "at most 16 MiB" in run("-f", "/dev/zero").err


def test_a_token_test_with_other_things_than_ids_is_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tests"
    file.write_text("x => 1,two\n")
    result = run("-tt", str(file))
    assert (result.code, result.out) == (2, "")
    assert "-tt line 1: found '1,two', expected ids" in result.err


def test_too_little_memory_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def starved(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("starcoder.model.models.build", starved)
    result = run("-p", "x")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "not enough memory" in result.err


def test_what_one_run_has_computed_serves_the_next(run: Run, model: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "kept")
    expected = greedy(model, "def f(x):")
    Path(cache).touch()  # as `mktemp` makes one
    for n_cached in (0, 2):
        result = run("-p", "def f(x):", "--json", "--prompt-cache", cache)
        answer = json.loads(result.out)
        assert answer["text"] == expected
        assert answer["cached_tokens"] >= n_cached
        assert "warning" not in result.err


def test_a_prompt_cache_that_is_no_good_is_one_line_and_the_answer_the_same(
    run: Run, model: str, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("do not lose me")
    result = run("-p", "def f(x):", "--prompt-cache", str(tmp_path / "notes"))
    assert (result.code, result.out) == (0, f"def f(x):{greedy(model, 'def f(x):')}\n")
    note = "notes: found another kind of file, expected a prompt cache"
    assert result.err.count(note) == 1
    assert (tmp_path / "notes").read_text() == "do not lose me"


def test_memory_for_keys_and_values_is_a_number_of_bytes(run: Run) -> None:
    assert "kv memory  = 1.00 MB at most (bf16)" in run("-p", "x", "--kv-memory", "1100K").err
    assert "found '2X', expected a number of bytes" in run("-p", "x", "--kv-memory", "2X").err
    assert "kv_memory: found 0.1 MB, expected at least" in run("-p", "x", "--kv-memory", "200K").err
