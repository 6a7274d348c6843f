"""The drawing of the house, executed: imports point down only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import starcoder

ROOT = Path(starcoder.__file__).parent

# The rooms from the bottom up: the packages and modules of each, and the rooms that they may
# import. A module may import the others of its room, but no two each other.
ROOMS = {
    "base": ("__init__ errors pocket arguments", ""),
    "core": ("_core core", "base"),
    "model": ("model", "base core"),
    "formats": ("formats", "base core model"),
    "hub": ("hub", "base formats"),
    "convert": ("convert", "base core model"),
    "text": ("text", "base model"),
    "sampling": ("sampling", "base"),
    "engine": ("engine", "base core model sampling"),
    "completion": ("completion", "base text sampling engine"),
    "llm": (
        "facts loading scoring prompt_cache opened llm aio",
        "base core model formats hub convert text sampling engine completion",
    ),
    "bench": ("bench", "base core model formats hub convert"),
    "cli": ("cli __main__", "base core model formats hub convert sampling completion llm bench"),
}
# The core from the bottom up: a file may include those of its own line and of the lines before.
CORE_LEVELS = [
    "sys",
    "types simd probe",
    "kernels.h ops",
    "graph",
    "python",
]
NEVER_TORCH = {"torch", "transformers", "tensorflow", "jax"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


CORE = ROOT.parent.parent / "csrc"
SOURCES = sorted(path for path in CORE.rglob("*") if path.suffix in (".cpp", ".h"))
MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(name: str) -> str:
    """The room of a module; a package is in one room."""
    package = name.partition(".")[0]
    return next(room for room, (modules, _) in ROOMS.items() if package in modules.split())


def imports(name: str) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            base = str(node.module)
            names = {f"{base}.{alias.name}" for alias in node.names}
            is_module = {n for n in names if n.removeprefix("starcoder.") in {*MODULES, "_core"}}
            found |= is_module or {base}
    return found


def own_imports(name: str) -> set[str]:
    """The modules of ours that a file imports, without the package's name in front."""
    ours = {n for n in imports(name) if n.partition(".")[0] == "starcoder"}
    return {n.partition(".")[2] or "__init__" for n in ours}


def test_every_module_is_in_one_room_and_every_room_is_there() -> None:
    listed = [module for modules, _ in ROOMS.values() for module in modules.split()]
    assert len(listed) == len(set(listed))
    assert {name.partition(".")[0] for name in MODULES} | {"_core"} == set(listed)


def test_rooms_see_only_rooms_below() -> None:
    below: set[str] = set()
    for name, (_, seen) in ROOMS.items():
        assert set(seen.split()) <= below, name
        below.add(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_a_module_imports_what_its_room_may_see(name: str) -> None:
    here = room(name)
    for other in own_imports(name):
        assert room(other) in {here, *ROOMS[here][1].split()}, f"{name} imports {other}"


def test_no_two_modules_import_each_other() -> None:
    """Nor do three in a circle. `__init__` imports nothing until a name is asked for."""
    graph = {name: own_imports(name) - {name} for name in MODULES if name != "__init__"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


def test_no_room_may_see_what_it_does_not_use() -> None:
    used: dict[str, set[str]] = {name: set() for name in ROOMS}
    for name in MODULES:
        if name != "__init__":
            used[room(name)] |= {room(other) for other in own_imports(name)} - {room(name)}
    assert used == {name: set(seen.split()) for name, (_, seen) in ROOMS.items()}


def test_the_wheel_has_no_module_that_no_door_leads_to() -> None:
    """What only a checkout needs, such as slow twins and other programs, is not in the package."""
    doors = {"__init__", "__main__", "cli"}
    reached: set[str] = set()
    while doors:
        name = doors.pop()
        package = name.rpartition(".")[0]
        reached.add(name)
        doors |= ({*own_imports(name), package} & MODULES.keys()) - reached
    assert reached == MODULES.keys()


# ---- the core ------------------------------------------------------------------------------------


def core_level(path: Path) -> int:
    """The level of a file of the core, which is that of its folder."""
    part = path.relative_to(CORE).parts[0]
    return next(i for i, parts in enumerate(CORE_LEVELS) if part in parts.split())


def core_includes(path: Path) -> set[Path]:
    """The files of the core that a file includes."""
    names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE)
    return {CORE / name for name in names}


def test_every_file_of_the_core_is_on_one_level() -> None:
    listed = [part for parts in CORE_LEVELS for part in parts.split()]
    assert len(listed) == len(set(listed))
    assert {path.relative_to(CORE).parts[0] for path in SOURCES} == set(listed)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CORE)))
def test_includes_point_down_only(path: Path) -> None:
    for other in core_includes(path):
        assert other in SOURCES, f"{path} includes {other}"
        assert core_level(other) <= core_level(path), f"{path} includes {other}"


def test_no_two_headers_include_each_other() -> None:
    graph = {path: core_includes(path) for path in SOURCES}
    assert set(TopologicalSorter(graph).static_order()) == set(SOURCES)


# ---- further rules -------------------------------------------------------------------------------


def test_formats_know_nothing_of_each_other() -> None:
    folders = ("formats.gguf", "formats.ggml", "formats.hf")
    for here in folders:
        for name in MODULES:
            if name.startswith(here):
                others = tuple(other for other in folders if other != here)
                assert not {n for n in own_imports(name) if n.startswith(others)}, name


def test_bookkeeping_is_done_over_ints() -> None:
    for name in ("engine.block_pool", "engine.scheduler"):
        assert "numpy" not in imports(name)


def test_no_other_framework_is_imported_anywhere() -> None:
    for name in MODULES:
        roots = {other.partition(".")[0] for other in imports(name)}
        assert not roots & NEVER_TORCH, name


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text()))


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_the_package_costs_nothing() -> None:
    heavy = {"numpy", "tokenizers", "safetensors", "typer", "fastapi", "uvicorn", "starcoder._core"}
    assert not modules_after("import starcoder") & heavy


def test_the_llm_loads_no_front_end() -> None:
    heavy = {"typer", "fastapi", "uvicorn", "pydantic", "rich", "huggingface_hub"}
    assert not modules_after("from starcoder import LLM") & heavy


def test_a_gguf_file_is_opened_without_what_other_models_need() -> None:
    others = {"hub._find", "formats.hf.reader", "formats.gguf.writer", "formats.ggml.writer"}
    loaded = modules_after("from starcoder import LLM; LLM()")
    assert "starcoder.formats.gguf.reader" in loaded
    assert not {name.removeprefix("starcoder.") for name in loaded} & others


def test_the_version_is_the_distributions() -> None:
    pyproject = (ROOT.parent.parent / "pyproject.toml").read_text()
    assert f'\nversion = "{starcoder.__version__}"\n' in pyproject
