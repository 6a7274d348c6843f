"""Truncated and damaged files of every format end in an error, soon and in little memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from starcoder import formats
from starcoder.errors import FormatError
from starcoder.model.checkpoint import Checkpoint
from tests.helpers.every_format import WRITERS
from tests.helpers.gguf import Value, write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.refusals import EDGES, fails, patched
from tests.helpers.tiny import TinyModel, make_tiny

WEIGHTS = {"gguf": "", "legacy": "", "hf": "model.safetensors"}


@pytest.fixture(params=sorted(WRITERS))
def victim(request: pytest.FixtureRequest, tmp_path: Path, tiny: TinyModel) -> tuple[Path, Path]:
    """A model, and the file of it that holds the weights."""
    path = WRITERS[request.param](tmp_path / request.param, tiny)
    return path, path / WEIGHTS[request.param] if WEIGHTS[request.param] else path


def test_truncated_files_are_refused(victim: tuple[Path, Path]) -> None:
    path, file = victim
    raw = file.read_bytes()
    rng = np.random.default_rng(0)
    for n in sorted({0, 1, 3, 4, 8, len(raw) - 1, *rng.integers(0, len(raw), 194).tolist()}):
        file.write_bytes(raw[:n])
        fails(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_truncated_json_is_refused(tmp_path: Path, tiny: TinyModel, name: str) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    raw = (path / name).read_bytes()
    for n in range(0, len(raw), 1 + len(raw) // 100):
        (path / name).write_bytes(raw[:n])
        fails(path, name)


def mutants(raw: bytes, n_head: int, n: int) -> Iterator[bytes]:
    """Seeded damage, mostly in the header: numbers at the edges of their ranges, flipped bits."""
    rng = np.random.default_rng(1)
    for i in range(n):
        damaged = bytearray(raw)
        limit = n_head if i % 4 else len(raw)
        if i % 2:
            width = int(rng.choice([1, 2, 4, 8]))
            edge = int(rng.choice(np.array(EDGES, dtype=object))) + int(rng.integers(-2, 3))
            at = int(rng.integers(0, limit - width))
            damaged[at : at + width] = (edge % (1 << 8 * width)).to_bytes(width, "little")
        else:
            for at in rng.integers(0, limit, int(rng.integers(1, 9))).tolist():
                damaged[at] ^= 1 << int(rng.integers(0, 8))
        yield bytes(damaged)


def survives(path: Path) -> bool:
    """Whether `path` can be read; anything but a Checkpoint or a FormatError fails the test."""
    try:
        checkpoint = formats.read(path)
    except FormatError as error:
        message = str(error)
    else:
        return isinstance(checkpoint, Checkpoint)
    assert path.name in message
    return False


def test_damaged_files_are_read_or_refused_and_nothing_else(victim: tuple[Path, Path]) -> None:
    path, file = victim
    raw = file.read_bytes()
    n_head = len(raw) - sum(array.nbytes for array in make_tiny().weights.values())
    outcomes = set()
    for damaged in mutants(raw, n_head, 400):
        file.write_bytes(damaged)
        outcomes.add(survives(path))
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_damaged_json_is_read_or_refused_and_nothing_else(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    raw = (path / name).read_bytes()
    for damaged in mutants(raw, len(raw), 200):
        (path / name).write_bytes(damaged)
        survives(path)


@pytest.mark.parametrize("count", [2**31 - 1, 2**32, 2**60, 2**64 - 1])
@pytest.mark.parametrize("at", [8, 16])
def test_counts_that_no_file_can_hold_take_no_memory(tmp_path: Path, at: int, count: int) -> None:
    path = tmp_path / "claims.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + b"\0" * 4096)
    patched(path, at, "<Q", count)
    tracemalloc.start()
    fails(path, "number of")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "unknown.strings"])
def test_arrays_that_no_file_can_hold_take_no_memory(
    tmp_path: Path, tiny: TinyModel, key: str
) -> None:
    path = write_gguf(tmp_path / "claims.gguf", tiny, keys={key: Value("str", ["a", "b"])})
    at = path.read_bytes().index(key.encode()) + len(key) + 8
    for count in EDGES[2:]:
        patched(path, at, "<Q", count)
        tracemalloc.start()
        fails(path, key)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_failed_reads_leave_no_file_open(victim: tuple[Path, Path]) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no list of open files on this system")
    path, file = victim
    file.write_bytes(file.read_bytes()[:-1])
    before = len(list(descriptors.iterdir()))
    assert not any(survives(path) for _ in range(50))
    assert len(list(descriptors.iterdir())) <= before


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_an_output_matrix_that_copies_the_embedding_is_not_kept_twice(
    kind: str, tmp_path: Path
) -> None:
    model = make_tiny(tied=False)
    assert "output.weight" in formats.read(WRITERS[kind](tmp_path / "separate", model)).tensors
    model.weights["output.weight"] = model.weights["token_embd.weight"].copy()
    assert "output.weight" not in formats.read(WRITERS[kind](tmp_path / "copy", model)).tensors
