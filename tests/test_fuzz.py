"""Damaged models work or end in one of our errors: a sample of what `make fuzz` runs.

In a process of its own, as children are forked from it and the tests' own has threads.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import mutants

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_damaged_models_never_surprise() -> None:
    rows = run("-m", "tests.fuzz", "--n", "11", "--seed", "100000").splitlines()[1:]
    assert [row.split()[0] for row in rows] == [*mutants.FORMATS, "bombs"]


@pytest.mark.parametrize("name", mutants.FORMATS)
def test_a_damaged_model_comes_again_from_its_seed(name: str) -> None:
    assert mutants.mutant(name, 7) == mutants.mutant(name, 7)
    assert mutants.mutant(name, 7) != mutants.mutant(name, 8)


JUDGE = """
import json
from tests.fuzz import judge, mutants
from tests.helpers.gguf import write_gguf
from tests.helpers.tiny import make_tiny
good = mutants.make(lambda path: write_gguf(path, make_tiny()))
kinds = [judge.attempt(good).kind, judge.attempt({"m": b"x"}).kind]
for action in ACTIONS:
    def read(path):
        exec(action)
        raise judge.FormatError("x", "x", "x")
    judge.formats.read = read
    kinds.append(judge.attempt({"m": b"x"}).kind)
print(json.dumps(kinds))
"""


def test_the_judge_sees_every_kind_of_bug() -> None:
    seen = {
        "raise KeyError('x')": "KeyError",
        "raise MemoryError": "MemoryError",
        "import warnings; warnings.warn('x')": "UserWarning",
        "import os; os.abort()": "signal 6",
        "import ctypes; ctypes.string_at(8)": "signal 11",
        "import os, signal; os.kill(os.getpid(), signal.SIGALRM)": "hang",
        "x = bytearray(80 << 20)": "memory",
        "raise judge.FormatError('a' * 2001, '', '')": "unclear message",
        "import os; os._exit(0)": "no answer",
    }
    answer = run("-c", JUDGE.replace("ACTIONS", repr(list(seen))))
    assert json.loads(answer) == ["works", "refused", *seen.values()]


def test_the_judge_sees_what_is_slow() -> None:
    code = "from tests.fuzz import judge; judge.MAX_SECONDS = 0.0; "
    assert run("-c", code + "print(judge.attempt({'m': b'x'}).kind)") == "slow\n"
