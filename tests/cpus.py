"""Other CPUs, emulated, give the bits of this one: `make test-cpus`.

What the core answers here is recorded on a tape (`helpers/recorded_calls.py`). Then each machine
below replays it, with the instruction set that the core chooses there by itself: with the Python of
this machine if it is of the same architecture, else with replay.cpp, cross-compiled.

With STARCODER_CPUS_FULL (`make test-cpus-full`) matrices are larger, and the tests of the kernels
run there themselves.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from starcoder import _core
from tests.helpers.recorded_calls import record_all, record_norms
from tests.helpers.tape import Tape

ROOT = Path(__file__).parent.parent
FULL = bool(os.environ.get("STARCODER_CPUS_FULL"))

pytestmark = pytest.mark.timeout(3600 if FULL else 300)


class Machine(NamedTuple):
    """A CPU of the emulator, and the instruction set that must be chosen on it."""

    arch: str
    cpu: str
    isa: str
    asked: str | None = None  # STARCODER_ISA

    @property
    def name(self) -> str:
        return f"{self.cpu}-{self.asked}" if self.asked else self.cpu


MACHINES = [
    Machine("x86_64", "Nehalem", "scalar"),
    Machine("x86_64", "Haswell", "avx2"),
    Machine("x86_64", "EPYC", "avx2"),
    Machine("aarch64", "cortex-a72", "scalar"),  # no dot product
    Machine("aarch64", "cortex-a76", "neon"),
    Machine("aarch64", "cortex-a76", "scalar", asked="scalar"),
]
PYTHONS = [machine for machine in MACHINES if machine.arch == platform.machine()]


def every(machines: list[Machine]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", machines, ids=lambda machine: machine.name)


# ---- running -------------------------------------------------------------------------------------


def emulated(
    machine: Machine, *command: str | Path, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a program on the machine."""
    emulator = shutil.which(f"qemu-{machine.arch}")
    if not emulator:
        pytest.skip(f"no qemu-{machine.arch}: make test-cpus installs it")
    # OpenBLAS would believe a variable that says which CPU it has.
    ours = ("OPENBLAS", "STARCODER")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    if machine.asked:
        environment["STARCODER_ISA"] = machine.asked
    line = [emulator, "-cpu", machine.cpu, *map(str, command)]
    return subprocess.run(line, env=environment, input=stdin, capture_output=True, text=True)


def replayer(machine: Machine) -> list[str | Path]:
    """The program that replays a tape on the machine."""
    if machine in PYTHONS:
        return [sys.executable, "-m", "tests.helpers.tape"]
    program = ROOT / "build" / "cpus" / machine.arch / "replay"
    if not program.exists():
        pytest.skip(f"no {program.relative_to(ROOT)}: `make test-cpus` builds it for aarch64")
    return [program]


class Row(NamedTuple):
    machine: Machine
    what: str
    seconds: float


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[Callable[[Machine, str, float], None]]:
    """Takes rows, and prints them as a table when all is done."""
    rows: list[Row] = []
    yield lambda machine, what, seconds: rows.append(Row(machine, what, seconds))
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n\n{'CPU':<12} {'instructions':<13} {'what':<28} {'seconds':>8}")
        for machine, what, seconds in rows:
            print(f"{machine.cpu:<12} {machine.isa:<13} {what:<28} {seconds:8.1f}")


# ---- tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> Tape:
    """What this machine answers."""
    tape = Tape()
    with tape.recording():
        record_all(tape, full=FULL)
    return tape


@pytest.fixture(scope="module")
def tape(recorded: Tape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a file."""
    path = tmp_path_factory.mktemp("cpus") / "tape"
    recorded.save(path)
    return path


def test_every_function_of_the_core_is_on_the_tape(recorded: Tape) -> None:
    names = {name for name in dir(_core) if not name.startswith("_")} - {"testing"}
    for kind in ("Graph", "Memory", "testing"):
        methods = [name for name in dir(getattr(_core, kind)) if not name.startswith("_")]
        names |= {f"{kind}.{name}" for name in methods}
    assert names - recorded.names == {
        *(
            "isa",
            "available_isas",
            "use_isa",
            "n_threads",
            "set_n_threads",
            "start_threads",
            "close",
        ),
        *("collapse_pages", "testing.begin_small", "packed_bytes"),  # where weights lie, not what
        "Graph.text",  # what it is, not what it gives
        *("watch_mapping", "lost_bytes", "unwatch_mapping"),  # files
    }


@every(MACHINES)
def test_it_chooses_its_instruction_set_and_gives_the_same_bits(
    machine: Machine, tape: Path, report: Callable[[Machine, str, float], None]
) -> None:
    started = time.perf_counter()
    run = emulated(machine, *replayer(machine), tape)
    assert run.returncode == 0, run.stderr[-4000:]
    isa, n_calls = run.stdout.split()
    assert isa == machine.isa
    report(machine, f"{n_calls} calls, the same bits", time.perf_counter() - started)


COMMANDS = [  # and their stdin
    (["-p", "def fibonacci(", "-n", "16", "--temp", "0"], ""),
    (["-p", "def is_even(n):", "-n", "48", "--temp", "0"], ""),
    (["-p", "-", "-n", "12", "--seed", "42"], "import \n"),
]


@every(PYTHONS)
def test_python_imports_it_and_writes_the_same_text(
    machine: Machine, report: Callable[[Machine, str, float], None]
) -> None:
    started = time.perf_counter()
    code = "import starcoder, starcoder.core.ops as ops; print(ops.isa())"
    run = emulated(machine, sys.executable, "-c", code)
    assert (run.returncode, run.stdout.strip()) == (0, machine.isa), run.stderr
    for options, stdin in COMMANDS:
        command = [sys.executable, "-m", "starcoder", *options]
        here = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True)
        there = emulated(machine, *command, stdin=stdin)
        assert there.returncode == 0, there.stderr
        assert there.stdout == here.stdout
    report(machine, f"import, {len(COMMANDS)} commands", time.perf_counter() - started)


@every(MACHINES)
def test_one_wrong_bit_is_told(machine: Machine, tmp_path: Path) -> None:
    tape, path = Tape(), tmp_path / "tape"
    with tape.recording():
        record_norms(tape)
    tape.save(path)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1  # of the last answer
    path.write_bytes(data)
    run = emulated(machine, *replayer(machine), path)
    assert run.returncode == 1
    assert "testing.layer_norm k = 2049: " in run.stderr


@pytest.mark.skipif(not FULL, reason="for make test-cpus-full")
@every(PYTHONS)
def test_the_tests_of_the_kernels_pass(
    machine: Machine, report: Callable[[Machine, str, float], None]
) -> None:
    started = time.perf_counter()
    tests = ROOT / "tests"
    files = sorted(tests.glob("test_kernels*.py"))
    files += [tests / f"test_{name}.py" for name in ("encode", "pocket", "llm")]
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-o", "timeout=1200", *files]
    # QEMU 7.2 reads what vmaskmovps masks, also where nothing can be read.
    if machine.isa == "avx2":
        command += ["-k", "not touches_memory_beyond"]
    run = emulated(machine, *command)
    assert run.returncode == 0, run.stdout[-4000:]
    passed = re.findall(r"\d+ passed", run.stdout)[-1]
    report(machine, f"tests of the kernels: {passed}", time.perf_counter() - started)
