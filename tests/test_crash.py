"""Whatever ends a run, the old file is whole, or the new one is.

`make campaign-crash` (STARCODER_CRASHES=100) kills a hundred times; a usual run, a few.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from starcoder import formats
from starcoder.errors import WriteError
from starcoder.formats.io.atomic import write_file
from tests.helpers.gguf import write_gguf
from tests.helpers.tiny import TinyModel, make_tiny

N_KILLS = int(os.environ.get("STARCODER_CRASHES", "5"))
N_PLACES = 50
ROOT = str(Path(__file__).parent.parent)


def start(script: str, *args: object) -> subprocess.Popen[bytes]:
    """A process that runs a script, once it has said that it is ready."""
    command = [sys.executable, "-c", script, *map(str, args)]
    env = os.environ | {"PYTHONPATH": ROOT}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", process.communicate()
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------

WRITE_FOR_EVER = """
import sys
from starcoder import formats
first, second = map(formats.read, sys.argv[1:3])
print("ready", flush=True)
while True:
    formats.write(sys.argv[3], second)
    formats.write(sys.argv[3], first)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    sources, whole = [], []
    out = tmp_path / "folder" / "out.gguf"
    out.parent.mkdir()
    for seed in (1, 2):
        sources.append(write_gguf(tmp_path / f"{seed}.gguf", make_tiny(seed=seed)))
        formats.write(out, formats.read(sources[-1]))
        whole.append(out.read_bytes())
    rng, n_debris = random.Random(0), 0
    for _ in range(N_KILLS):
        process = start(WRITE_FOR_EVER, *sources, out)
        time.sleep(rng.random() * 0.05)
        process.kill()
        process.communicate()
        assert out.read_bytes() in whole
        n_debris = max(n_debris, len(names(out.parent)) - 1)
    assert n_debris <= 1  # each run removed what the one before left
    formats.write(out, formats.read(sources[0]))
    assert names(out.parent) == ["out.gguf"]


# ------------------------------------------------------------------------------------------------

WRITE_WITH_LIMITS = """
import os, resource, sys
from pathlib import Path
from starcoder import formats
from starcoder.errors import WriteError
source, out, n = formats.read(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
old = out.read_bytes()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
print("ready", flush=True)
for place in range(n):
    resource.setrlimit(resource.RLIMIT_FSIZE, (place * len(old) // n, hard))
    try:
        formats.write(out, source)
    except WriteError as error:
        message = str(error)
        assert str(out) in message and f"room for {len(old):,} bytes" in message, message
        assert "bytes free" in message, message
    else:
        raise AssertionError("written beyond the limit")
    assert out.read_bytes() == old and os.listdir(out.parent) == [out.name]
print(n)
"""


def test_a_disk_that_fills_at_any_place_leaves_the_old_file(
    tmp_path: Path, tiny: TinyModel
) -> None:
    source, out = write_gguf(tmp_path / "in.gguf", tiny), tmp_path / "folder" / "out.gguf"
    out.parent.mkdir()
    formats.write(out, formats.read(source))
    output, errors = start(WRITE_WITH_LIMITS, source, out, N_PLACES).communicate(timeout=60)
    assert (output, errors) == (b"%d\n" % N_PLACES, b"")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB in memory; for root only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_another_program_fills_leaves_the_old_file(small_disk: Path) -> None:
    out, filler = small_disk / "out", small_disk / "filler"
    out.write_bytes(b"old")

    def pieces(place: int) -> Iterator[bytes]:
        for i in range(10):
            if i == place:  # meanwhile, in another program
                with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
                    file.write(bytes(2 << 20))
            yield bytes(50_000)

    for place in range(10):
        with pytest.raises(WriteError, match="room for 500,000 bytes"):
            write_file(out, 500_000, pieces(place))
        filler.unlink(missing_ok=True)
        assert (names(small_disk), out.read_bytes()) == (["out"], b"old")
    with pytest.raises(WriteError, match="room for 5,000,000 bytes"):
        write_file(out, 5_000_000, pieces(0))
    assert not filler.exists()  # said before the work began
    write_file(out, 500_000, pieces(-1))
    assert out.stat().st_size == 500_000


# ------------------------------------------------------------------------------------------------

SLOW_QUANTIZE = """
import sys, time
from starcoder.core import ops
from starcoder.cli import main
fast = ops.requantize
def slow(*args, **kwargs):
    print("ready", flush=True)
    time.sleep(0.1)
    return fast(*args, **kwargs)
ops.requantize = slow
sys.argv[0] = "starcoder"
main()
"""


def test_ctrl_c_cleans_up(tmp_path: Path, tiny: TinyModel) -> None:
    source, out = write_gguf(tmp_path / "in.gguf", tiny), tmp_path / "folder" / "out.gguf"
    out.parent.mkdir()
    out.write_bytes(b"old")
    process = start(SLOW_QUANTIZE, "quantize", source, out, "q4_0")
    assert len(names(out.parent)) == 2  # the old file and the temporary one
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert (names(out.parent), out.read_bytes()) == (["out.gguf"], b"old")
