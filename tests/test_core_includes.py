"""The core's folders: who includes whom, and that no file grows too long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
FILES = sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp"))

MAY_INCLUDE = {  # a folder's headers; each also its own
    "types": set(),
    "simd": {"types", "probe/peak_loops.h"},  # inner loops of the probes
    "sys": set(),
    "kernels.h": {"types"},
    "ops": {"kernels.h", "types", "simd", "sys"},
    "graph": {"kernels.h", "sys"},
    "probe": {"simd", "sys"},
    "python": {"kernels.h", "graph", "types", "simd", "sys", "probe"},
}
MORE = {  # than their folder, in what no other folder includes
    "types/pack.cpp": {"sys"},
    "types/int16_scales.h": {"simd"},
    "types/encode.cpp": {"simd", "sys"},
    "graph/runner.cpp": {"simd"},  # which instruction set a schedule was made for
}
names = [path.relative_to(CSRC).as_posix() for path in FILES]


def folder(name: str) -> str:
    return name.split("/")[0]


def includes(name: str) -> list[str]:
    return re.findall(r'^#include "(.+)"', (CSRC / name).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", names)
def test_a_folder_includes_only_what_it_may_know(name: str) -> None:
    own = folder(name)
    allowed = {own} | MAY_INCLUDE[own] | MORE.get(name, set())
    assert [i for i in includes(name) if i not in allowed and folder(i) not in allowed] == []


def test_no_file_includes_itself_by_way_of_others() -> None:
    above: dict[str, set[str]] = {}

    def reached(name: str, path: tuple[str, ...] = ()) -> set[str]:
        assert name not in path, " -> ".join((*path, name))
        if name not in above:
            above[name] = set()
            for include in includes(name):
                above[name] |= {include} | reached(include, (*path, name))
        return above[name]

    for name in names:
        reached(name)


@pytest.mark.parametrize("name", names)
def test_only_the_bindings_know_python(name: str) -> None:
    text = (CSRC / name).read_text()
    assert folder(name) == "python" or not re.search(r"Python\.h|nanobind", text)


@pytest.mark.parametrize("name", names)
def test_no_file_is_longer_than_400_lines(name: str) -> None:
    assert len((CSRC / name).read_text().splitlines()) <= 400


def test_every_switch_over_types_names_them_all() -> None:
    """`default:` would take a forgotten type for another one."""
    with_default = [name for name in names if "default:" in (CSRC / name).read_text()]
    assert with_default == ["python/checks.cpp"]  # numbers of files, refused there
