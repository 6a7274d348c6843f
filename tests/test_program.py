"""The command as a program of its own: signals, pipes, locales and full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from starcoder import LLM

# Generation slow enough to be interrupted, in the load or in a step.
SLOW = """
import sys, time
from starcoder.model import models
build = models.build
def slow(checkpoint):
    if "{where}" == "load":
        print("loading", flush=True)
        for _ in range(600):  # a signal just before a sleep is heard after it
            time.sleep(0.1)
    model = build(checkpoint)
    forward = type(model).forward
    def wait(self, *args):
        time.sleep(0.02)
        return forward(self, *args)
    type(model).forward = wait
    return model
models.build = slow
from starcoder.cli import main
main()
"""


@pytest.fixture(scope="module")
def model(data: Path) -> str:
    return str(data / "gpt_bigcode-q4_0.gguf")


def start(where: str, *args: str) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    """A run of the command that dawdles somewhere, its stdout and its stderr."""
    code = [sys.executable, "-c", SLOW.format(where=where)]
    # A shell without job control starts background jobs deaf to Ctrl-C; be sure to hear it.
    process = subprocess.Popen(
        [*code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    return process, process.stdout, process.stderr


def test_ctrl_c_ends_with_what_is_there_and_the_times(model: str) -> None:
    process, stdout, _ = start("step", "-m", model, "-p", "def f(", "-n", "400", "--temp", "0")
    head = stdout.read(12)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    text = (head + out).decode()
    assert process.returncode == 130
    assert text.endswith("\n")
    assert ("def f(" + LLM(model).generate("def f(", max_tokens=400).text).startswith(text[:-1])
    assert b"predict time" in err
    assert b"Traceback" not in err


def test_ctrl_c_with_json_gives_the_object(model: str) -> None:
    process, _, stderr = start(
        "step", "-m", model, "-p", "def f(", "-n", "400", "--temp", "0", "--json"
    )
    while b"number of tokens" not in stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["finish_reason"] == "cancelled"


def test_ctrl_c_while_loading_is_quiet(model: str) -> None:
    process, stdout, _ = start("load", "-m", model, "-p", "x")
    assert stdout.readline() == b"loading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


def test_a_reader_that_goes_away_is_no_news(model: str) -> None:
    process, stdout, stderr = start(
        "step", "-m", model, "-p", "def f(", "-n", "400", "--ignore-eos"
    )
    with process:
        stdout.read(8)
        stdout.close()
        err = stderr.read()
    assert process.returncode == 141
    assert b"Traceback" not in err
    assert b"rror" not in err


def test_python_m_starcoder_is_the_command_in_any_locale(model: str) -> None:
    command = [sys.executable, "-m", "starcoder", "-m", model, "-p", "größe", "-n", "2"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, env=environment)
    assert result.returncode == 0
    assert result.stdout.startswith("größe".encode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(model: str) -> None:
    command = [sys.executable, "-m", "starcoder", "-m", model, "-p", "x"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 2
    assert b"no space left on device" in result.stderr.splitlines()[-1]
    assert b"Traceback" not in result.stderr


THREADS = """
import os
from starcoder.cli import main
try:
    main()
finally:
    print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux only")
def test_one_thread_that_computes_is_the_only_one_beside_the_one_that_asks(model: str) -> None:
    """Where a container allows no more, none that nobody needs is in the way."""
    command = [sys.executable, "-c", THREADS, "-m", model, "-p", "x", "-n", "1", "-t", "1"]
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.splitlines()[-1]) <= 2, "the engine's may have ended already"
