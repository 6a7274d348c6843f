"""Model files that are cut or written into while they are read, and after."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import starcoder
from starcoder import formats
from starcoder.convert import quantize
from starcoder.convert.mix import find_mix
from starcoder.convert.quantize import Choice
from starcoder.core import ops
from starcoder.core.tensor import Tensor
from starcoder.errors import FormatError
from starcoder.formats.io.mapped import map_file
from starcoder.model import models
from tests.helpers.command import Run
from tests.helpers.gguf import write_gguf
from tests.helpers.tiny import make_tiny

CHANGED = "a file that changed while it was read"


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def overwrite(path: Path) -> None:
    """Other bytes, as many: only the time of writing tells."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 4096)
        file.write(b"\x55" * 4096)
    os.utime(path, ns=(1, 1))


HARM = pytest.mark.parametrize("harm", [cut, overwrite])


def test_bytes_that_are_cut_off_read_as_zeros(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x77" * 100_000)
    data = map_file(path)
    os.truncate(path, 50_000)
    assert data[:50_000] == b"\x77" * 50_000
    assert data[50_000:] == bytes(50_000)
    with pytest.raises(FormatError, match=CHANGED):
        data.check()


def test_a_file_that_only_grew_or_was_replaced_by_renaming(tmp_path: Path) -> None:
    path, new = tmp_path / "file", tmp_path / "new"
    path.write_bytes(bytes(9000))
    data = map_file(path)
    new.write_bytes(b"\x77" * 100)
    new.rename(path)
    data.check()
    data = map_file(path)
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(FormatError, match=CHANGED):
        data.check()


def test_many_files_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x77" * 20_000)
    for _ in range(3):
        kept = [map_file(path) for _ in range(200)]
        for data in kept:
            data.check()
    os.truncate(path, 100)
    assert {data[19_999] for data in kept} == {0}


def test_other_bus_errors_still_end_the_process(tmp_path: Path) -> None:
    code = """
import mmap, os, sys
from pathlib import Path
from starcoder.formats.io.mapped import map_file
path = Path(sys.argv[1])
path.write_bytes(bytes(20_000))
ours = map_file(path)
with path.open("rb") as file:
    others = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(path, 10)
print(ours[15_000], flush=True)
others[15_000]
"""
    for options in ([], ["-X", "faulthandler"]):
        command = [sys.executable, *options, "-c", code, str(tmp_path / "file")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stdout) == (-signal.SIGBUS, "0\n")
        assert ("Bus error" in result.stderr) == bool(options)


@HARM
@pytest.mark.parametrize("name", ["out.gguf", "out.bin"])
def test_a_source_that_changes_while_it_is_converted(
    tmp_path: Path, harm: Callable[[Path], None], name: str
) -> None:
    source, out = write_gguf(tmp_path / "in.gguf", make_tiny()), tmp_path / name
    out.write_bytes(b"old")
    checkpoint = formats.read(source)
    choice = Choice(mix=find_mix("q8_0"), legacy=name.endswith(".bin"))
    types, _ = quantize.plan(checkpoint, choice)
    weights = quantize.quantize(checkpoint, types, legacy=choice.legacy)
    done = 0

    def on_bytes(n: int) -> None:
        nonlocal done
        if done <= 20_000 < done + n:
            harm(source)
        done += n

    with pytest.raises(FormatError, match=CHANGED):
        formats.write(out, checkpoint, weights, legacy=choice.legacy, on_bytes=on_bytes)
    assert done > 20_000
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.gguf", name]


@HARM
def test_a_file_that_changes_while_it_is_loaded(
    tmp_path: Path, harm: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_tiny())
    checkpoint, pack = formats.read(path), ops.pack

    def harm_and_pack(tensor: Tensor) -> ops.Matrix:
        if path.stat().st_mtime_ns != 1 and path.stat().st_size > 5000:
            harm(path)
        return pack(tensor)

    monkeypatch.setattr(ops, "pack", harm_and_pack)
    with pytest.raises(FormatError, match=CHANGED):
        models.build(checkpoint)


@HARM
def test_a_file_that_changes_after_loading_changes_nothing(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_tiny())
    llm = starcoder.LLM(path, n_threads=1)
    before = llm.logits([5, 6, 7, 300])
    harm(path)
    assert (llm.logits([5, 6, 7, 300]) == before).all()


def test_the_command_says_it_in_one_line(tmp_path: Path, run: Run) -> None:
    source, out = write_gguf(tmp_path / "in.gguf", make_tiny()), tmp_path / "out.gguf"
    stop = threading.Event()

    def touch() -> None:
        while not stop.is_set():
            os.utime(source)
            time.sleep(0.001)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        result = run("quantize", str(source), str(out), "q4_0")
    finally:
        stop.set()
        thread.join()
    assert (result.code, result.out) == (2, "")
    assert CHANGED in result.err.splitlines()[-1]
    assert not out.exists()
