"""What text says of the checkout is so: imports of programs in strings, and paths in pages.

No linter and no type checker looks into strings, scripts and pages. What code imports by itself is
for `test_architecture.py`, links between pages are for `test_log.py`.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAMS = [*ROOT.glob("tests/**/*.py"), *ROOT.glob("scripts/*"), *ROOT.glob("docs/*.md")]
PROGRAMS += [ROOT / "README.md", ROOT / "src/starcoder/__init__.py"]
PAGES = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"]
FOLDERS = "csrc|tests|docs|src|bench|training|scripts"
NO_PLACES = {"llama.cpp", "ik_llama.cpp", "csrc/simd/NAME.cpp"}  # programs; a file yet to come

IMPORT = re.compile(r"from (starcoder[\w.]*) import (\([^)]*\)|[\w, ]+)")
PATH = re.compile(rf"(?:(?<![\w./-])(?:{FOLDERS})/)?(?<![./-])\b[\w./-]*\w\.(?:cpp|py|h|md)\b")


def lacking(text: str) -> set[str]:
    """The names that a text imports from the package and that are not there."""
    found = set()
    for module, names in IMPORT.findall(text):
        for name in re.sub(r" as \w+|[()\s]", "", names).strip(",").split(","):
            try:
                if not hasattr(importlib.import_module(module), name):
                    importlib.import_module(f"{module}.{name}")
            except ImportError:
                found.add(f"{module}.{name}")
    return found


def lost(text: str) -> set[str]:
    """The paths from the root, and files of C++, that a text names and that are not there."""
    names = set(PATH.findall(text)) - NO_PLACES
    whole = {name for name in names if re.match(f"(?:{FOLDERS})/", name)}
    parts = {name for name in names - whole if name.endswith(".cpp")}
    return {name for name in whole if not (ROOT / name).exists()} | {
        name for name in parts if not [*ROOT.glob(f"csrc/**/{name}"), *ROOT.glob(f"tests/{name}")]
    }


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_what_a_program_in_text_imports_is_there(path: Path) -> None:
    assert not lacking(path.read_text())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_is_where_it_says(path: Path) -> None:
    assert not lost(path.read_text())
