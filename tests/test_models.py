"""Models: the logits that transformers computes, and the same bits however they are asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starcoder import formats
from starcoder.core import ops
from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import FormatError
from starcoder.model import layers, models
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.config import ModelConfig
from starcoder.model.kv_cache import KVCache
from starcoder.model.models import Model
from tests import reference
from tests.helpers.gguf import write_gguf
from tests.helpers.run_model import QUANTIZED_LIMIT, cache_for, divergence, greedy, limit, logits
from tests.helpers.tiny import make_tiny
from tests.helpers.twins import ONE_BY_ONE, SLOW

pytestmark = pytest.mark.usefixtures("core_restored")

ORACLE_FILES = (
    *(f"{name}.gguf" for name in ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")),
    *(f"{name}.gguf" for name in ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl")),
    *(f"legacy-{name}.bin" for name in ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")),
)


@pytest.fixture(scope="module")
def checkpoint(data: Path) -> Checkpoint:
    return formats.read(data / "gpt_bigcode-q4_0.gguf")


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> Model:
    return models.build(checkpoint)


@pytest.fixture(scope="module")
def ids(data: Path) -> list[int]:
    with np.load(data / "gpt_bigcode-expected.npz") as expected:
        return expected["ids"].tolist()


# ---- right ----


@pytest.mark.parametrize("file", ["gpt_bigcode-q4_0.gguf", "gpt_bigcode-legacy-q4_0.bin"])
def test_logits_are_those_of_transformers(file: str, data: Path, ids: list[int]) -> None:
    with np.load(data / "gpt_bigcode-expected.npz") as expected:
        found = logits(models.build(formats.read(data / file)), ids)
        assert divergence(expected[file], found) <= QUANTIZED_LIMIT


@pytest.mark.parametrize("file", ORACLE_FILES)
def test_logits_of_every_type_are_those_of_transformers(
    file: str, oracle: Path, ids: list[int], record_property: Callable[[str, object], None]
) -> None:
    with np.load(oracle / "expected.npz") as expected:
        found = logits(models.build(formats.read(oracle / file)), ids)
        kl = divergence(expected[file], found)
    record_property("kl", kl)
    assert kl <= limit(file)


def test_a_directory_gives_the_logits_of_its_gguf(oracle: Path, ids: list[int]) -> None:
    from_directory = logits(models.build(formats.read(oracle / "hf")), ids)
    from_gguf = logits(models.build(formats.read(oracle / "f32.gguf")), ids)
    assert np.abs(from_directory - from_gguf).max() <= 1e-5


@pytest.mark.parametrize("file", ["f32.gguf", "legacy-f32.bin", "hf"])
def test_greedy_tokens_are_those_of_transformers(file: str, oracle: Path) -> None:
    about = json.loads((oracle / "about.json").read_text())
    found = greedy(models.build(formats.read(oracle / file)), about["ids"], len(about["greedy"]))
    assert found == about["greedy"]


@pytest.mark.parametrize("n_kv_heads", [1, 4])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 3, 4, 16])
def test_a_graph_gives_the_bits_of_its_operations_one_by_one(
    n_kv_heads: int, n_threads: int, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_tiny(n_kv_heads=n_kv_heads))
    ids = [(7 * i) % 60 for i in range(n)]
    before = ops.n_threads()
    ops.set_n_threads(n_threads)
    try:
        found = logits(models.build(formats.read(path)), ids)
    finally:
        ops.set_n_threads(before)
    monkeypatch.setattr(layers, "ops", ONE_BY_ONE)
    assert np.array_equal(found, logits(models.build(formats.read(path)), ids))


@pytest.mark.parametrize("isa", ops.available_isas())
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_a_graph_rounds_between_products_as_the_products_do(
    isa: str,
    n_threads: int,
    checkpoint: Checkpoint,
    ids: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = ops.n_threads(), ops.isa()
    ops.set_n_threads(n_threads)
    ops.use_isa(isa)
    try:
        found = [logits(models.build(checkpoint), ids[:n]) for n in (1, 3, 30)]
        monkeypatch.setattr(layers, "ops", ONE_BY_ONE)
        for answer in found:
            one_by_one = logits(models.build(checkpoint), ids[: len(answer)])
            assert np.array_equal(answer, one_by_one)
    finally:
        ops.set_n_threads(before[0])
        ops.use_isa(before[1])


def in_floats(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights as F32."""
    floats = {
        name: Tensor(
            TensorType.F32, tensor.shape, reference.dequantize(tensor).view(np.uint8).reshape(-1)
        )
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, tensors=floats)


# A last bit that differs can move an activation to the next of 255 steps, and a weight of attention
# to the next of bf16: with quantized weights not equal, but nearer than to the exact logits.
@pytest.mark.parametrize(("floats", "bound"), [(True, 1e-8), (False, QUANTIZED_LIMIT / 2)])
def test_the_model_agrees_with_itself_on_the_slow_twins(
    floats: bool,
    bound: float,
    checkpoint: Checkpoint,
    ids: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = in_floats(checkpoint) if floats else checkpoint
    fast = logits(models.build(chosen), ids[:20])
    monkeypatch.setattr(layers, "ops", SLOW)
    assert divergence(logits(models.build(chosen), ids[:20]), fast) <= bound


@pytest.mark.parametrize(("n_kv_heads", "tied"), [(1, True), (1, False), (4, True)])
def test_every_shape_of_the_architecture_agrees_with_the_slow_twins(
    n_kv_heads: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = make_tiny(n_kv_heads=n_kv_heads, tied=tied)
    checkpoint = formats.read(write_gguf(tmp_path / "tiny.gguf", tiny))
    assert checkpoint.config.n_kv_heads == n_kv_heads
    fast = logits(models.build(checkpoint), range(3, 19), [13, 3])
    monkeypatch.setattr(layers, "ops", SLOW)
    slow = logits(models.build(checkpoint), range(3, 19))
    assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()


# ---- one answer ----


@pytest.mark.parametrize("isa", ops.available_isas())
def test_logits_are_the_same_bits_whole_or_in_chunks(
    isa: str, model: Model, ids: list[int]
) -> None:
    ops.use_isa(isa)
    whole = logits(model, ids)
    for sizes in ([1] * 65, [64, 1], [1, 64], [7, 20, 1, 30, 7]):
        assert np.array_equal(logits(model, ids, sizes), whole), sizes


def test_logits_are_the_same_bits_on_any_number_of_threads(model: Model, ids: list[int]) -> None:
    answers = []
    for n in (1, 2, 3):
        ops.set_n_threads(n)
        answers.append(logits(model, ids, [40, 1, 24]))
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2])


def test_logits_are_the_same_bits_on_every_instruction_set(model: Model, ids: list[int]) -> None:
    answers = []
    for isa in ops.available_isas():
        ops.use_isa(isa)
        answers.append(logits(model, ids))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_logits_are_the_same_bits_alone_or_in_a_batch(model: Model, ids: list[int]) -> None:
    texts = [ids, ids[5:30], ids[10:11], ids[::-1]]
    alone = [logits(model, text) for text in texts]
    cache, chunks, at = KVCache(model.config, 40), [], 0
    for text in texts:
        n_blocks = -(-len(text) // BLOCK_LEN)
        chunks.append((text, 0, list(range(at, at + n_blocks))))
        at += n_blocks
    n = sum(len(text) for text in texts)
    together = model.forward(Batch.of(chunks, list(range(n))), cache)
    assert np.array_equal(together, np.concatenate(alone))


def test_only_the_rows_that_are_asked_for_get_logits(model: Model, ids: list[int]) -> None:
    cache, table = cache_for(model, len(ids))
    all_rows = logits(model, ids)
    some = model.forward(Batch.of([(ids, 0, table)], [3, 64]), cache)
    assert np.array_equal(some, all_rows[[3, 64]])
    none = model.forward(Batch.of([(ids, 0, table)], []), cache)
    assert none.shape == (0, model.config.n_vocab)


# ---- shapes and sizes ----


def test_the_cache_of_santacoder_takes_25_mb_at_2048_tokens() -> None:
    santacoder = ModelConfig(
        architecture="gpt_bigcode",
        n_ctx=2048,
        n_vocab=49280,
        dim=2048,
        hidden_dim=8192,
        n_layers=24,
        n_heads=16,
        n_kv_heads=1,
    )
    assert KVCache(santacoder, 2048 // BLOCK_LEN).nbytes == 25_165_824  # ggml's takes 768 MB


def test_a_missing_or_misshapen_tensor_is_named(checkpoint: Checkpoint) -> None:
    name = "blk.1.ffn_up.weight"
    without = {k: v for k, v in checkpoint.tensors.items() if k != name}
    with pytest.raises(FormatError, match=rf"gguf: tensor {name}: no such tensor"):
        models.build(replace(checkpoint, tensors=without))
    wrong = {**checkpoint.tensors, name: checkpoint.tensors["blk.1.ffn_down.weight"]}
    with pytest.raises(FormatError, match=r"found shape \(256, 1024\), expected shape \(1024, 256"):
        models.build(replace(checkpoint, tensors=wrong))


def test_an_unknown_architecture_is_named(checkpoint: Checkpoint) -> None:
    config = replace(checkpoint.config, architecture="starcoder9")
    with pytest.raises(FormatError, match="found 'starcoder9', expected gpt_bigcode"):
        models.build(replace(checkpoint, config=config))
