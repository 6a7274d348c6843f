"""Fixtures for all tests: where data lies, the tiny model, the command line, the core's settings.

What they are made of is in `helpers`; its writers are held against the package's readers, which
are also held against files that other programs wrote (`data`, and `oracle` where it is at hand).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from starcoder.core import ops
from tests.helpers.command import Result, Run
from tests.helpers.every_format import WRITERS
from tests.helpers.fake_hub import FakeHub, serving
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel, make_tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """Directory of the small files that come with the tests."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of large reference data; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("STARCODER_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set STARCODER_SHARED")
    return path


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Path:
    """Directory of one small GPTBigCode model in many formats and types, with its logits."""
    return shared / "oracle" / "gpt_bigcode"


@pytest.fixture
def tiny() -> TinyModel:
    """A fresh tiny model: multi-query attention, tied output; tests may change it."""
    return make_tiny()


@pytest.fixture(params=sorted(WRITERS))
def tiny_path(request: pytest.FixtureRequest, tmp_path: Path, tiny: TinyModel) -> Path:
    """The tiny model on disk, in each format in turn."""
    return WRITERS[request.param](tmp_path / request.param, tiny)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command with these arguments, in this process."""

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["starcoder", *args])
        from starcoder.cli import main

        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        assert isinstance(code, int)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def core_restored() -> Iterator[None]:
    """Gives the core its instruction set and its number of threads back."""
    isa, n_threads = ops.isa(), ops.n_threads()
    yield
    ops.use_isa(isa)
    ops.set_n_threads(n_threads)


@pytest.fixture(params=ops.available_isas())
def isa(request: pytest.FixtureRequest, core_restored: None) -> str:
    """The core on each instruction set of this machine in turn."""
    name: str = request.param
    ops.use_isa(name)
    return name


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub on this machine, with an empty repository and an empty cache."""
    with serving(tmp_path, monkeypatch) as fake:
        yield fake


@pytest.fixture
def served(fake: FakeHub, tmp_path: Path, tiny: TinyModel) -> FakeHub:
    """The same with the tiny model in its repository."""
    fake.add(write_hf(tmp_path / "served", tiny))
    return fake
