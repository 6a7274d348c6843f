"""A new architecture is one file and one row: it runs, is converted, quantized and measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from starcoder import LLM, formats
from starcoder.bench import synthetic
from starcoder.bench.runner import Runner, Task
from starcoder.convert.mix import all_mixes, find_mix
from starcoder.convert.quantize import Choice, plan, quantize
from starcoder.core.tensor import TensorType
from starcoder.errors import FormatError, WriteError
from starcoder.model import layers, models
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.config import ModelConfig
from tests.helpers.gguf import write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.run_model import logits
from tests.helpers.tiny import TinyModel, make_tiny
from tests.helpers.toy import TOY
from tests.helpers.twins import ONE_BY_ONE, SLOW

pytestmark = pytest.mark.usefixtures("core_restored")

IDS = [7, 3, 250, 3, 99, 7, 1, 18, 40]


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The row that adds it."""
    monkeypatch.setitem(models.ARCHITECTURES, TOY.name, TOY)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def toy(request: pytest.FixtureRequest) -> TinyModel:
    return make_tiny(seed=5, n_kv_heads=2, tied=request.param, architecture=TOY)


def rewritten(path: Path, checkpoint: Checkpoint, mix: str) -> Checkpoint:
    types, _ = plan(checkpoint, Choice(mix=find_mix(mix)))
    formats.write(path, checkpoint, quantize(checkpoint, types))
    return formats.read(path)


def test_a_directory_and_a_gguf_file_are_one_model(toy: TinyModel, tmp_path: Path) -> None:
    from_hf = formats.read(write_hf(tmp_path / "hf", toy))
    from_gguf = formats.read(write_gguf(tmp_path / "m.gguf", toy))
    assert (from_hf.config, dict(from_hf.tensors)) == (from_gguf.config, dict(from_gguf.tensors))
    config = from_hf.config
    assert (config.architecture, config.n_kv_heads, config.activation) == ("toy", 2, "silu")
    for name, array in toy.weights.items():
        assert np.array_equal(from_hf.tensors[name].array(), array), name


def test_what_is_written_is_read_again(toy: TinyModel, tmp_path: Path) -> None:
    checkpoint = formats.read(write_hf(tmp_path / "hf", toy))
    again = rewritten(tmp_path / "m.gguf", checkpoint, "f32")
    assert (again.config, dict(again.tensors)) == (checkpoint.config, dict(checkpoint.tensors))
    assert list(again.tensors) == [n for n in TOY.specs(toy.n_layers) if n in toy.weights]


@pytest.mark.parametrize("mix", ["f32", "f16", "bf16", "q4_0", "q8_0"])
def test_its_graph_gives_the_bits_of_its_operations_one_by_one(
    mix: str, toy: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = rewritten(tmp_path / "m", formats.read(write_hf(tmp_path / "hf", toy)), mix)
    whole = logits(models.build(checkpoint), IDS)
    assert np.array_equal(logits(models.build(checkpoint), IDS, [4, 1, 4]), whole)
    monkeypatch.setattr(layers, "ops", ONE_BY_ONE)
    assert np.array_equal(logits(models.build(checkpoint), IDS), whole)


def test_numpy_agrees(toy: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "m", toy))
    fast = logits(models.build(checkpoint), IDS)
    monkeypatch.setattr(layers, "ops", SLOW)
    slow = logits(models.build(checkpoint), IDS)
    assert np.abs(fast - slow).max() <= 1e-4 * np.abs(slow).max()


@pytest.mark.parametrize("mix", [mix.name for mix in all_mixes()])
def test_it_is_quantized_by_the_rules_of_every_mix(
    mix: str, toy: TinyModel, tmp_path: Path
) -> None:
    found = rewritten(tmp_path / "m", formats.read(write_hf(tmp_path / "hf", toy)), mix)
    for name, tensor in found.tensors.items():
        is_float = not TOY.specs(toy.n_layers)[name].role.is_matrix
        assert (tensor.type is TensorType.F32) or not is_float, name
    assert np.isfinite(logits(models.build(found), IDS)).all()


def test_mixes_go_by_roles() -> None:
    config = ModelConfig(
        architecture="toy",
        n_ctx=64,
        n_vocab=320,
        dim=256,
        hidden_dim=512,
        n_layers=8,
        n_heads=8,
        n_kv_heads=2,
        activation="silu",
    )
    tensors = synthetic.checkpoint(config, find_mix("q4_k_m")).tensors
    parts = "attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_down"
    kinds = [tensors[f"blk.0.{part}.weight"].type.name for part in parts]
    assert kinds == ["Q4_K", "Q4_K", "Q6_K", "Q4_K", "Q6_K"]


def test_the_bench_counts_its_gate(toy: TinyModel, tmp_path: Path) -> None:
    runner = Runner(formats.read(write_gguf(tmp_path / "m", toy)), Task(n_prompt=1, n_decode=1))
    layer = toy.dim * (toy.qkv_dim + toy.dim + 3 * toy.hidden_dim)
    expected = toy.n_layers * layer + toy.n_vocab * toy.dim
    assert runner.decode_work(1).multiply_adds == runner.prompt_work.multiply_adds == expected


def test_it_generates_text(toy: TinyModel, tmp_path: Path) -> None:
    llm = LLM(str(write_gguf(tmp_path / "m.gguf", toy)))
    tokens = llm.generate("def add(", max_tokens=4, ignore_eos=True, temperature=0).tokens
    prompt = llm.tokenize("def add(")
    rows = llm.logits([*prompt, *tokens])[len(prompt) - 1 : -1]
    assert list(tokens) == rows.argmax(axis=1).tolist()


def test_a_tensor_that_lacks_is_named_as_its_own(tmp_path: Path) -> None:
    toy = make_tiny(n_kv_heads=2, architecture=TOY)
    del toy.weights["blk.1.ffn_gate.weight"]
    with pytest.raises(FormatError, match=r"transformer.layers.1.mlp.gate_proj.weight"):
        formats.read(write_hf(tmp_path / "hf", toy))
    with pytest.raises(FormatError, match=r"blk.1.ffn_gate.weight"):
        models.build(formats.read(write_gguf(tmp_path / "m", toy)))


def test_a_legacy_file_cannot_hold_it(toy: TinyModel, tmp_path: Path) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "m", toy))
    with pytest.raises(WriteError, match="a GPTBigCode model in a legacy file"):
        formats.write(tmp_path / "m.bin", checkpoint, legacy=True)


def test_without_its_row_it_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m", make_tiny(n_kv_heads=2, architecture=TOY))
    del models.ARCHITECTURES[TOY.name]
    with pytest.raises(FormatError, match="a model of the architecture 'toy'"):
        formats.read(path)
