"""`python -m bench.against`: another program in turns with ours. No test asserts a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import against as command
from bench.rival import Rival
from starcoder.bench import synthetic
from starcoder.bench.runner import Task
from starcoder.convert.mix import find_mix
from starcoder.errors import InputError
from tests.helpers.command import Result

SHORT = ["-p", "20", "-n", "3", "-r", "2"]
Against = Callable[..., Result]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, core_restored: None) -> None:
    """A small model of the family."""
    monkeypatch.setitem(synthetic.SHAPES, "small", (256, 4, 2, 64))
    monkeypatch.setattr(synthetic, "_N_VOCAB", 512)


@pytest.fixture
def against(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Against:
    """Run the command with these arguments, in this process."""

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["against", *args, *SHORT])
        return Result(command.main(), *capfd.readouterr())

    return run


@pytest.fixture
def model(data: Path) -> str:
    return str(data / "gpt_bigcode-q4_0.gguf")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["gpt"], "program: found 'gpt', expected llama-cpp or ctranslate2"),
        (["llama-cpp", "--batch", "2"], "--batch: found 2 with llama-cpp"),
        (["ctranslate2", "--python", "/no/python"], "--python: found /no"),
        (["llama-cpp", "--shape", "small", "--depth", "60"], "--depth: found 80 tokens"),
    ],
)
def test_bad_options_are_one_line(against: Against, args: list[str], message: str) -> None:
    found = against(*args)
    assert (found.code, found.out) == (2, "")
    assert found.err.count("\n") == 1
    assert message in found.err


FAKE = """
__version__ = "1.2"
import sys
print("chatter")

class Llama:
    def __init__(self, path, flash_attn, **_):
        assert open(path, "rb").read(4) == b"GGUF"
        self.n_tokens, self.n_evals, self.flash = 0, 0, flash_attn

    def n_vocab(self):
        return 512

    def eval(self, tokens):
        import time
        time.sleep(0.003 if self.flash else 0.001)
        self.n_tokens += len(tokens)

    def close(self):
        pass
"""


# What it ends with, a while after its answers have closed.
LATE = "Late = type('', (), {'__str__': lambda _: __import__('time').sleep(0.3) or 'late words'})"


@pytest.fixture
def fake_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name for the other program's Python."""
    (tmp_path / "llama_cpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # as most people's Python runs
    return tmp_path / "llama_cpp.py"


@pytest.mark.parametrize("source", ["file", "shape"])
def test_a_rival_runs_in_turns_and_the_ratio_has_its_spread(
    against: Against, model: str, fake_llama_cpp: Path, source: str
) -> None:
    chosen = ["-m", model] if source == "file" else ["--shape", "small"]
    answer = json.loads(against("llama-cpp", *chosen, "--json").out)
    assert answer["rival"] == "llama.cpp (llama-cpp-python 1.2), flash attention off"
    for kind in ("prompt", "decode"):
        low, high = answer[f"{kind}_ratio_range"]
        assert 0 < low <= answer[f"{kind}_ratio"] <= high
        assert answer[f"rival_{kind}_tps"] > 0
    assert "q4_0 to llama.cpp (llama-cpp-python 1.2)" in against("llama-cpp", *chosen).out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("assert open", "raise RuntimeError('no ' + 'luck') #"), "RuntimeError: no luck"),
        (("assert open", "import os; sys.exit('bye' + 'bye') #"), "it ended: byebye"),
        (("assert open", f"{LATE}; sys.exit(Late()) #"), "it ended: late words"),
    ],
)
def test_a_rival_that_fails_is_quoted(
    against: Against, model: str, fake_llama_cpp: Path, change: tuple[str, str], message: str
) -> None:
    fake_llama_cpp.write_text(FAKE.replace(*change))
    found = against("llama-cpp", "-m", model)
    assert (found.code, found.out) == (2, "")
    assert f"llama-cpp: found {message}" in found.err


@pytest.mark.parametrize(
    ("kind", "package"), [("llama-cpp", "llama-cpp-python"), ("ctranslate2", "ctranslate2")]
)
def test_a_rival_that_is_not_installed_says_how_to_install_it(
    tmp_path: Path, kind: str, package: str
) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(InputError, match=f"-m pip install {package}.*--python"):
        Rival(kind, str(bare))


def test_a_rival_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_llama_cpp: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    mix = find_mix("q4_0")
    checkpoint = synthetic.checkpoint(synthetic.config_of("small"), mix)
    with Rival("llama-cpp", sys.executable) as rival:
        rival.load(checkpoint, Task(4, 2), 1)
        assert list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "temporary").iterdir())
