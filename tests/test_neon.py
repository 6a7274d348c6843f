"""The NEON kernels, cross-compiled and emulated, give the bits of the machine at hand.

Needs g++-aarch64-linux-gnu and qemu-user; skipped without them, and on ARM itself, where
`test_kernels.py` runs the kernels for real.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from starcoder import ops
from starcoder.batch import Batch
from starcoder.tensor import TensorType
from weights import random_tensor

CSRC = Path(__file__).parent.parent / "csrc"
SOURCES = [
    "quantize",
    "encode",
    "pack",
    "chunk",
    "weight_memory",
    "threads",
    "linear",
    "attention",
    "limits",
    "isa",
    "isa_scalar",
    "isa_neon",
]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

pytestmark = [
    pytest.mark.skipif(platform.machine() in ("aarch64", "arm64"), reason="this machine is ARM"),
    pytest.mark.skipif(not (COMPILER and EMULATOR), reason="no cross-compiler or no emulator"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels for ARM, with a main program that replays operations."""
    folder = tmp_path_factory.mktemp("neon")
    # As CMakeLists.txt compiles them, but -O2: half the time, and the bits must not depend on it.
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", f"-I{CSRC}"]

    def compile_one(source: Path) -> str:
        extra = ["-march=armv8.2-a+dotprod"] if source.stem == "isa_neon" else []
        out = str(folder / f"{source.stem}.o")
        subprocess.run([str(COMPILER), *flags, *extra, "-c", str(source), "-o", out], check=True)
        return out

    sources = [CSRC / f"{name}.cpp" for name in SOURCES] + [Path(__file__).parent / "replay.cpp"]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_one, sources))
    out = folder / "replay"
    subprocess.run([str(COMPILER), "-static", *objects, "-pthread", "-o", str(out)], check=True)
    return out


def record(*numbers: int) -> bytes:
    return np.array(numbers, np.int32).tobytes()


def test_neon_gives_the_same_bits_as_this_machine(program: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    script, expected = b"", []
    for kind in TensorType:
        n_cols = 512 if kind.block_len == 256 else 416
        w, x = random_tensor(kind, 50, n_cols), rng.standard_normal((9, n_cols)).astype(np.float32)
        script += record(kind, 50, n_cols, 9) + w.data.tobytes() + x.tobytes()
        expected.append(ops.linear(x, ops.pack(w), activation="gelu_tanh"))
        rows = rng.standard_normal((7, n_cols)).astype(np.float32) * 0.02
        script += record(-2, kind, 7, n_cols) + rows.tobytes()
        expected.append(ops.quantize(rows, kind).data.astype(np.float32))
    for n_heads, head_dim, n in ((3, 20, 40), (9, 64, 290)):
        qkv = rng.standard_normal((n, (n_heads + 2) * head_dim)).astype(np.float32)
        width, blocks = -(-head_dim // 16) * 16, -(-n // 16)
        batch = Batch.of([([0] * n, 0, range(blocks))], [])
        for kind, dtype in ((-1, np.float16), (-4, np.uint16)):
            keys = np.zeros((blocks, 1, width, 16), dtype)
            values = np.zeros((blocks, 1, 16, width), dtype)
            ops.store_kv(qkv, n_heads, batch, keys, values)
            script += record(kind, n_heads, head_dim, n) + qkv.tobytes()
            expected.append(ops.attention(qkv, n_heads, batch, keys, values))
    for kind in (0, 1, 2):
        script += record(-3, kind, 0, 0)
        expected.append(np.array([15, 1], np.float32))
    (tmp_path / "input").write_bytes(script)
    for isa in ("neon", "scalar"):
        out = tmp_path / isa
        command = [str(EMULATOR), str(program), isa, str(tmp_path / "input"), str(out)]
        subprocess.run(command, check=True)
        found, at = np.fromfile(out, np.float32), 0
        for answer in expected:
            part = found[at : at + answer.size].reshape(answer.shape)
            assert np.array_equal(part, answer), isa
            at += answer.size
        assert at == found.size
