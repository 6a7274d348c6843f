"""The drawing of the house, executed: imports point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import starcoder

ROOT = Path(starcoder.__file__).parent

# From the bottom up. A module may import from lower levels, and within its own package.
LEVELS = [
    ["errors", "pocket"],
    ["_core", "__init__", "arguments"],
    ["config", "mapped_file", "tensor", "batch", "vocab"],
    ["checkpoint", "limits", "machine", "ops"],
    ["long_text", "tokenizer"],
    [
        "formats",
        "hub",
        "mix",
        "quantize",
        "finite",
        "type_plan",
        "models.layers",
        "kv_cache",
        "sampler",
        "memory",
    ],
    ["models"],
    ["engine"],
    ["completion", "facts", "stream", "llm", "bench"],
    ["cli", "server"],
    ["__main__"],
]
# What a level would allow and the drawing does not: who may import nothing of ours but this.
ONLY = {
    "sampler": {"arguments", "errors"},
    "long_text": {"vocab"},
    "tokenizer": {"errors", "long_text", "vocab"},
    "models": {"batch", "checkpoint", "config", "errors", "kv_cache", "models", "ops", "tensor"},
    "engine": {"batch", "engine", "errors", "kv_cache", "models", "sampler"},
    "cli": {"__init__", "cli", "completion", "errors", "formats", "hub", "llm", "quantize"}
    | {"bench", "checkpoint", "config", "limits", "machine", "memory"}
    | {"mix", "ops", "pocket", "stream"},
    "server": {"completion", "errors", "llm", "server", "stream"},
}
NEVER_TORCH = {"torch", "transformers", "tensorflow", "jax"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def level(name: str) -> int:
    """The level of a module: its own row, or that of its package; -1 if it has none."""
    for known in (name, name.partition(".")[0]):
        for i, row in enumerate(LEVELS):
            if known in row:
                return i
    return -1


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


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_its_place(name: str) -> None:
    assert level(name) >= 0


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__init__"])
def test_imports_point_down_only(name: str) -> None:
    package = name.partition(".")[0]
    for other in own_imports(name):
        same_room = other.partition(".")[0] == package or (
            other in LEVELS[level(name)] and name in LEVELS[level(name)]
        )
        assert same_room or level(other) < level(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", [n for n in MODULES if n.partition(".")[0] in ONLY])
def test_some_rooms_see_less_than_their_level(name: str) -> None:
    seen = {other.partition(".")[0] for other in own_imports(name)}
    assert seen <= ONLY[name.partition(".")[0]]


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


def test_formats_know_nothing_of_each_other() -> None:
    formats = {n for n in MODULES if n.startswith("formats.") and not n.startswith("formats._")}
    for name in formats:
        assert not own_imports(name) & (formats - {name}), name


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


def test_the_version_is_the_distributions() -> None:
    pyproject = (ROOT.parent.parent / "pyproject.toml").read_text()
    assert f'\nversion = "{starcoder.__version__}"\n' in pyproject
