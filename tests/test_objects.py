"""Objects that are compiled for more than every CPU has: nothing of them runs before it was asked.

An initializer would run when the library is loaded. A symbol that several objects may define (weak,
unique, COMDAT) comes from whichever the linker meets first, perhaps with instructions that this CPU
lacks, and is called from everywhere.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from starcoder.core import ops

ROOT = Path(__file__).parent.parent
# Where the build of this Python leaves them, and the one for other CPUs (`make test-cpus`).
TAG = f"cp{sys.version_info.major}{sys.version_info.minor}-*"
OBJECTS = [
    path
    for build in (f"build/{TAG}", "build/cpus/*")
    for path in sorted(ROOT.glob(f"{build}/CMakeFiles/kernels.dir/csrc/simd/*.o"))
    if not path.name.startswith("isa.")  # which asks
]
READELF = shutil.which("readelf")

pytestmark = [
    pytest.mark.skipif(
        not OBJECTS, reason="no objects in build/: make .venv/installed leaves some"
    ),
    pytest.mark.skipif(not READELF, reason="no readelf, of binutils, to read objects with"),
]


def initializers(path: Path) -> list[str]:
    """Sections with what runs when a library is loaded or left."""
    names = [words[0] for words in table(path, "--sections")]
    starts = (".init_array", ".preinit_array", ".fini_array", ".ctors", ".dtors")
    return [name for name in names if name.startswith(starts)]


def shared_symbols(path: Path) -> list[str]:
    """What is defined here, but may be taken from another object, or for one."""
    groups = [" ".join(words) for words in table(path, "--sections") if "GROUP" in words]
    symbols = []
    for _, _, _, binding, _, section, name, *_ in table(path, "--symbols"):
        if binding in ("WEAK", "UNIQUE") and section != "UND":
            symbols.append(name)
    return groups + symbols


def table(path: Path, option: str) -> list[list[str]]:
    """The rows of one of readelf's tables, without their numbers."""
    command = [str(READELF), "--wide", option, str(path)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = [line.replace("[", " ").replace("]", " ").split() for line in lines]
    named = [row for row in rows if row and row[0].rstrip(":").isdigit()]
    return [row[1:] for row in named if len(row) >= 8]


def name_of(path: Path) -> str:
    return f"{path.parents[4].name}-{path.name.split('.')[0]}"


@pytest.mark.parametrize("path", OBJECTS, ids=name_of)
def test_nothing_runs_before_the_cpu_was_asked(path: Path) -> None:
    assert initializers(path) == []


@pytest.mark.parametrize("path", OBJECTS, ids=name_of)
def test_no_function_is_shared_with_code_for_every_cpu(path: Path) -> None:
    assert shared_symbols(path) == []


def test_every_instruction_set_of_this_machine_has_been_looked_at() -> None:
    found = {path.name.split(".")[0] for path in OBJECTS}
    assert found >= set(ops.available_isas())


@pytest.mark.parametrize(
    ("source", "finds"),
    [
        ("int count(); const int kept = count();", initializers),
        ("struct S { ~S(); }; S kept;", initializers),
        ("inline int one() { return 1; } int two() { return one() + 1; }", shared_symbols),
        (
            "template <class T> T same(T x) { return x; } int two() { return same(2); }",
            shared_symbols,
        ),
        ("inline int kept = 5; int two() { return kept; }", shared_symbols),
    ],
)
def test_what_is_looked_for_would_be_found(
    source: str, finds: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no compiler")
    (tmp_path / "code.cpp").write_text(source)
    command = [compiler, "-std=c++20", "-O0", "-c", "code.cpp", "-o", "code.o"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert finds(tmp_path / "code.o")
