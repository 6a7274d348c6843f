"""A model that can never fit is refused before memory is taken, with what would fit."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starcoder import LLM, FormatError, MemoryLimitError, formats, pocket
from starcoder.bench import synthetic
from starcoder.bench.runner import Runner, Task
from starcoder.convert import memory, mix
from starcoder.convert.memory import Use
from starcoder.core import machine, ops
from starcoder.core.machine import Room
from starcoder.core.tensor import Tensor, TensorType
from starcoder.model import models
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.kv_cache import KVCache, cache_bytes
from tests.helpers.command import Run
from tests.helpers.gguf import GGUFTensor, gguf_tensors, write_gguf
from tests.helpers.tiny import TinyModel, make_tiny

MB, GB = 1 << 20, 1 << 30


@pytest.fixture
def path(data: Path) -> Path:
    return data / "gpt_bigcode-q4_0.gguf"


def pretend(
    monkeypatch: pytest.MonkeyPatch, nbytes: int | None, addresses: int | None = None
) -> None:
    """Make this a machine with so many bytes of room."""
    found = None if nbytes is None else Room(nbytes, "free memory of this machine")
    space = None if addresses is None else Room(addresses, "address space left")
    monkeypatch.setattr(machine, "memory_room", lambda: found)
    monkeypatch.setattr(machine, "address_room", lambda: space)


def large_in_memory(path: Path) -> Path:
    """A file of 49 MB, 8 KB of them on disk, that is 2.5 GB when it is packed."""
    n = 1 << 22
    model = make_tiny()
    model.dim, model.hidden_dim, model.n_layers, model.n_heads = 1, n, 1, 1
    shapes = {"blk.0.attn_qkv": (3, 1), "blk.0.attn_output": (1, 1)}
    model.weights = {"token_embd.weight": np.zeros((model.n_vocab, 1), np.float32)}
    model.weights["position_embd.weight"] = np.zeros((model.n_ctx, 1), np.float32)
    for name, shape in shapes.items():
        model.weights[f"{name}.weight"] = np.zeros(shape, np.float32)
        model.weights[f"{name}.bias"] = np.zeros(shape[:1], np.float32)
    for norm in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        model.weights[f"{norm}.weight"] = model.weights[f"{norm}.bias"] = np.zeros(1, np.float32)
    model.weights["blk.0.ffn_down.bias"] = np.zeros(1, np.float32)
    hollow: dict[str, tuple[int, ...]] = {"ffn_up.weight": (n, 1), "ffn_up.bias": (n,)}
    hollow["ffn_down.weight"] = (1, n)
    tensors = gguf_tensors(model)
    for i, (name, sizes) in enumerate(hollow.items()):
        tensors.append(GGUFTensor(f"blk.0.{name}", sizes, 0, b"", (i << 24) + (1 << 16)))
    write_gguf(path, model, tensors=tensors)
    os.truncate(path, path.stat().st_size + (3 << 24) + (1 << 16))
    return path


def to_come(need: memory.Need) -> int:
    """Bytes that are not in memory yet when a model has been read."""
    return need.total - need.vectors


# Figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TensorType)
@pytest.mark.parametrize(("n_rows", "n_cols"), [(1, 256), (32, 512), (33, 256), (97, 1280)])
def test_packed_bytes_are_those_of_a_packed_matrix(
    kind: TensorType, n_rows: int, n_cols: int
) -> None:
    shape = (n_rows, n_cols)
    tensor = Tensor(kind, shape, np.zeros(kind.nbytes(shape), np.uint8))
    assert ops.packed_bytes(kind, shape) == ops.pack(tensor).nbytes


def test_packed_bytes_of_odd_columns_are_those_of_a_packed_matrix() -> None:
    for shape in [(1, 1), (32, 128), (33, 129), (5, 32), (64, 96)]:
        tensor = Tensor(TensorType.F16, shape, np.zeros(2 * math.prod(shape), np.uint8))
        assert ops.packed_bytes(TensorType.F16, shape) == ops.pack(tensor).nbytes
    with pytest.raises(ValueError, match="whole blocks"):
        ops.packed_bytes(TensorType.Q4_K, (32, 128))


@pytest.mark.parametrize("n_positions", [1, 256, 257, 5000])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_cache_bytes_are_those_of_a_cache(
    path: Path, n_positions: int, n_kv_heads: int, tiny: TinyModel
) -> None:
    config = replace(formats.read(path).config, n_kv_heads=n_kv_heads)
    cache = KVCache(config, -(-n_positions // 16))
    assert cache_bytes(config, n_positions) == cache.nbytes


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_model_are_what_it_packs(tmp_path: Path, tied: bool) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "x", make_tiny(tied=tied)))
    need = memory.need_of(checkpoint, Use(4, 16))  # all positions are copied, used or not
    assert need.weights == models.build(checkpoint).nbytes
    small = 4 * 32 * 16 + sum(t.nbytes for t in checkpoint.tensors.values() if len(t.shape) == 1)
    assert need.vectors == small
    assert need.total == need.weights + need.vectors + need.cache + need.step


@pytest.mark.parametrize("name", ["f16", "q8_0", "q2_k", "q4_k_m"])
def test_what_a_type_would_take_is_what_its_file_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(synthetic.SHAPES, "small", (256, 4, 2, 64))
    monkeypatch.setattr(synthetic, "_N_VOCAB", 512)
    config = synthetic.config_of("small")
    made = synthetic.checkpoint(config, mix.find_mix(name))
    other = synthetic.checkpoint(config, mix.find_mix("f32"))
    types = {n: t.type for n, t in made.tensors.items()}
    use = Use(64, 64)
    assert memory.need_of(other, use, types).weights == memory.need_of(made, use).weights
    assert memory.need_of(made, use).weights == models.build(made).nbytes


def test_inspect_says_what_a_model_takes(run: Run, path: Path) -> None:
    checkpoint = formats.read(path)
    total = memory.need_of(checkpoint, Use(512, 512)).total
    assert f"memory_bytes   {total:,}" in run("inspect", str(path)).out.splitlines()


# Refused -------------------------------------------------------------------------------------


def test_a_small_file_that_takes_much_memory_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 1 * GB)
    monkeypatch.setattr(ops, "pack", lambda tensor: pytest.fail("packed"))
    path = large_in_memory(tmp_path / "large.gguf")
    expected = "found a model that would take 2.8 GB, expected at most 1.0 GB, the free memory"
    with pytest.raises(MemoryLimitError, match=expected) as caught:
        LLM(path)
    assert "no type makes it small enough" in str(caught.value)


def test_what_just_fits_runs_and_a_byte_less_does_not(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = to_come(memory.need_of(formats.read(path), Use(512, 512)))
    pretend(monkeypatch, left, 10 * GB)
    assert len(LLM(path).generate("x", max_tokens=3).tokens) == 3
    pretend(monkeypatch, left - 1, 10 * GB)
    with pytest.raises(MemoryLimitError, match=re.escape(str(path))):
        LLM(path)


def test_where_nothing_is_known_everything_may_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, None)
    assert len(LLM(path).generate("x", max_tokens=3).tokens) == 3


def shape_1b(monkeypatch: pytest.MonkeyPatch, name: str) -> Checkpoint:
    """StarCoderBase-1B of which no weight is in memory."""
    hollow = lambda kind, shape, _: Tensor(  # noqa: E731
        kind, shape, np.broadcast_to(np.uint8(0), (kind.nbytes(shape),))
    )
    monkeypatch.setattr(synthetic, "_random", hollow)
    return synthetic.checkpoint(synthetic.config_of("starcoderbase-1b"), mix.find_mix(name))


def refusal(monkeypatch: pytest.MonkeyPatch, name: str, use: Use, **room: int | None) -> str:
    pretend(monkeypatch, room.get("nbytes"), room.get("addresses"))
    with pytest.raises(MemoryLimitError) as caught:
        memory.check(shape_1b(monkeypatch, name), use)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "megabytes", "best"),
    [
        *(("f32", 3000, "f16"), ("f32", 1500, "q8_0"), ("f32", 1150, "q6_k")),
        *(("f16", 750, "q4_0"), ("q8_0", 750, "q4_0")),
    ],
)
def test_the_type_that_fits_and_keeps_most_is_named(
    name: str, megabytes: int, best: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = Use(8192, 8192)
    line = refusal(monkeypatch, name, use, nbytes=megabytes * MB)
    fitting = re.search(rf"; as {best} it would take ([0-9.]+) (GB|MB): ", line)
    assert fitting, line
    assert float(fitting[1]) * {"GB": GB, "MB": MB}[fitting[2]] <= (megabytes + 100) * MB
    assert line.endswith(f"starcoder quantize 'starcoderbase-1b {name}' OUT.gguf {best}")
    memory.check(shape_1b(monkeypatch, best), use)


def test_where_no_type_fits_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    line = refusal(monkeypatch, "f32", Use(8192, 8192), nbytes=500 * MB)
    assert line.endswith("use a smaller model, or a machine with more memory")


def test_a_context_that_fits_is_named_before_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = memory.need_of(shape_1b(monkeypatch, "q8_0"), Use(8192, 8192))
    room = to_come(weights) - weights.cache // 2
    line = refusal(monkeypatch, "q8_0", Use(8192, 8192), nbytes=room)
    assert line.endswith("4096 tokens of context would fit: choose it with -c or n_ctx")
    memory.check(shape_1b(monkeypatch, "q8_0"), Use(4096, 4096))


def test_what_is_only_reserved_counts_as_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    left = to_come(memory.need_of(shape_1b(monkeypatch, "q4_0"), Use(8192, 8192)))
    pretend(monkeypatch, left)
    memory.check(shape_1b(monkeypatch, "q4_0"), Use(8192, 100 * 8192))
    roomy = left + 70 * MB  # for what is loaded after the model, too
    line = refusal(monkeypatch, "q4_0", Use(8192, 100 * 8192), addresses=roomy)
    assert line.endswith("choose a smaller kv_memory")
    line = refusal(monkeypatch, "q4_0", Use(8192, 8192), addresses=left)
    assert line.endswith("raise the limit")


def test_both_figures_differ_however_close_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    left = to_come(memory.need_of(shape_1b(monkeypatch, "f16"), Use(8192, 8192)))
    line = refusal(monkeypatch, "f16", Use(8192, 8192), nbytes=left - 1)
    needed, room = re.findall(r"([0-9.]+) GB", line)[:2]
    assert float(needed) > float(room)


def test_bench_is_refused_with_its_own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "build", lambda checkpoint: pytest.fail("packed"))
    pretend(monkeypatch, 1000 * MB)
    with pytest.raises(MemoryLimitError, match=r"as q6_k it would take .*: --type q6_k$"):
        Runner(shape_1b(monkeypatch, "f16"), Task())
    checkpoint = shape_1b(monkeypatch, "q4_0")
    with pytest.raises(MemoryLimitError, match=r"choose smaller -p, -n, --depth or --batch$"):
        Runner(checkpoint, Task(n_decode=4096, batch=64))


def test_damaged_shapes_are_left_to_the_model(tmp_path: Path, tiny: TinyModel) -> None:
    tiny.weights["blk.0.ffn_up.weight"] = tiny.weights["blk.0.ffn_up.weight"][:64]
    tiny.weights["blk.0.ffn_down.weight"] = np.zeros(3, np.float32)
    del tiny.weights["blk.1.ffn_up.weight"]
    path = write_gguf(tmp_path / "x", tiny)
    assert memory.need_of(formats.read(path), Use(16, 16)).total > 0
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.weight"):
        LLM(path)


# In a process of its own ---------------------------------------------------------------------

LIMITED = """
import resource, sys
from starcoder import MemoryLimitError, llm
from starcoder.core import machine
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = in_use + (int(sys.argv[2]) << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    model = llm.LLM(sys.argv[1], n_threads=1, n_parallel=1)
    print(len(model.generate("x", max_tokens=3, ignore_eos=True).tokens), "tokens")
except MemoryLimitError as error:
    print(error)
with open("/proc/self/status") as file:
    print(*(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def limited(path: Path, megabytes: int) -> tuple[str, int]:
    """What a process says that has so many MB of addresses left, and its peak in KiB."""
    command = [sys.executable, "-c", LIMITED, str(path), str(megabytes)]
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    line, peak = result.stdout.splitlines()
    return line, int(peak)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux only")
def test_a_limit_of_addresses_is_kept(tmp_path: Path) -> None:
    line, peak = limited(large_in_memory(tmp_path / "large.gguf"), 1000)
    assert "would take 2.9 GB, expected at most " in line
    assert "MB, the address space left (ulimit -v)" in line
    assert peak < 200 << 10
    assert limited(Path(pocket.PATH), 1000)[0] == "3 tokens"
