"""Quantizing whole models: llama.cpp's choice of types, ggml's bytes, the same for any threads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.convert.mix import Mix, find_mix, find_type
from starcoder.convert.quantize import Choice, check_finite, plan, quantize
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import FormatError, InputError
from starcoder.model.checkpoint import Checkpoint
from tests.helpers.gguf import write_gguf
from tests.helpers.tiny import TinyModel, make_tiny

EXACT = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
SEARCHED = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl")


def requantized(path: Path, source: Checkpoint, name: str, **choice: Any) -> Checkpoint:
    """The source as a file of that type, read again."""
    types, _ = plan(source, Choice(mix=find_mix(name), **choice))
    legacy = bool(choice.get("legacy"))
    formats.write(path, source, quantize(source, types, legacy=legacy), legacy=legacy)
    return formats.read(path)


def error(tensor: Tensor, exact: Tensor) -> float:
    """Root mean square of what quantizing changed."""
    return float(np.sqrt(np.mean((ops.dequantize(tensor) - ops.dequantize(exact)) ** 2)))


@pytest.fixture(scope="module")
def original(oracle: Path) -> Checkpoint:
    return formats.read(oracle / "f32.gguf")


# ------------------------------------------------------------------------------------------------
# Held against ggml and llama.cpp


def test_every_tensor_has_the_type_that_llama_cpp_gives_it(
    oracle: Path, original: Checkpoint
) -> None:
    about = json.loads((oracle / "about.json").read_text())
    for file, wanted in about["types"].items():
        types, notes = plan(original, Choice(mix=find_mix(file.removesuffix(".gguf"))))
        assert {name: kind.name for name, kind in types.items()} == wanted, file
        assert not notes


@pytest.mark.parametrize("name", EXACT)
def test_plain_types_are_llama_cpps_byte_for_byte(
    oracle: Path, original: Checkpoint, tmp_path: Path, name: str
) -> None:
    found, wanted = (
        requantized(tmp_path / "x", original, name),
        formats.read(oracle / f"{name}.gguf"),
    )
    for tensor_name, tensor in wanted.tensors.items():
        if tensor.type is not TensorType.Q6_K:  # the embedding: a search, in another order
            assert found.tensors[tensor_name] == tensor, tensor_name
    assert (found.config, found.vocab) == (wanted.config, wanted.vocab)


@pytest.mark.parametrize("name", ["f32", "f16", *EXACT])
def test_legacy_files_are_ggmls_byte_for_byte(
    oracle: Path, original: Checkpoint, tmp_path: Path, name: str
) -> None:
    requantized(tmp_path / "x.bin", original, name, legacy=True)
    assert (tmp_path / "x.bin").read_bytes() == (oracle / f"legacy-{name}.bin").read_bytes()


@pytest.mark.parametrize("name", SEARCHED)
def test_searched_types_are_at_least_as_exact_as_llama_cpps(
    oracle: Path, original: Checkpoint, tmp_path: Path, name: str
) -> None:
    found, wanted = (
        requantized(tmp_path / "x", original, name),
        formats.read(oracle / f"{name}.gguf"),
    )
    for tensor_name, tensor in wanted.tensors.items():
        exact = original.tensors[tensor_name]
        if tensor.type.block_len > 1:
            assert error(found.tensors[tensor_name], exact) <= error(tensor, exact), tensor_name


# ------------------------------------------------------------------------------------------------
# Which type


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: TinyModel) -> Checkpoint:
    """32 columns, 128 in ffn_down: no K type fits."""
    return formats.read(write_gguf(tmp_path / "tiny.gguf", tiny))


def kinds(checkpoint: Checkpoint, choice: Choice, names: Sequence[str]) -> list[str]:
    types, _ = plan(checkpoint, choice)
    return [types[f"{name}.weight"].name for name in names]


def test_types_are_named_in_any_case_or_by_ggmls_numbers() -> None:
    assert find_mix("Q4_0") is find_mix("2") is find_mix("q4_0")
    found = " ".join(find_mix(str(n)).name for n in (0, 1, 3, 7, 8, 9, 10, 11, 12, 13, 14))
    assert found == "f32 f16 q4_1 q8_0 q5_0 q5_1 q2_k q3_k q4_k q5_k q6_k"
    for bad in ("", "4", "-1", "99999999999999999999", "٢"):
        with pytest.raises(InputError, match="2 for q4_0"):
            find_mix(bad)
    with pytest.raises(InputError, match="expected f32 f16"):
        find_type("half")


def test_rows_that_hold_no_whole_blocks_get_another_type(checkpoint: Checkpoint) -> None:
    types, notes = plan(checkpoint, Choice(mix=find_mix("q4_k_m")))
    assert types["blk.0.ffn_up.weight"] is TensorType.Q5_0
    assert types["token_embd.weight"] is TensorType.Q8_0
    assert any("128 columns are no whole blocks of 256" in note for note in notes)
    types, notes = plan(checkpoint, Choice(mix=find_mix("q4_k"), legacy=True))
    assert {types[n] for n in types if n.endswith("ffn_up.weight")} == {TensorType.Q5_0}
    assert types["token_embd.weight"] is TensorType.Q5_0  # one type for all
    assert "all matrices are q5_0 instead of q4_k" in notes[0]


def test_vectors_and_positions_stay_exact(checkpoint: Checkpoint) -> None:
    types, _ = plan(checkpoint, Choice(mix=find_mix("q4_0")))
    kept = {name for name, kind in types.items() if kind is TensorType.F32}
    assert kept == {n for n, t in checkpoint.tensors.items() if len(t.shape) == 1} | {
        "position_embd.weight"
    }


def test_options_change_single_tensors(tmp_path: Path) -> None:
    model = formats.read(write_gguf(tmp_path / "untied.gguf", make_tiny(tied=False)))
    names = ("output", "token_embd", "blk.0.ffn_up", "blk.1.ffn_up", "blk.0.attn_qkv")
    choice = Choice(
        mix=find_mix("q4_0"),
        output_type=TensorType.F32,
        embedding_type=TensorType.F16,
        patterns=[("blk.0.ffn", TensorType.Q8_0), ("attn_*.weight", TensorType.Q5_1)],
    )
    assert kinds(model, choice, names) == ["F32", "F16", "Q8_0", "Q4_0", "Q5_1"]
    assert kinds(model, Choice(mix=find_mix("q4_0")), names[:2]) == ["Q8_0", "Q4_0"]


def test_a_pattern_gives_position_embeddings_float_types_alone(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    half = requantized(
        tmp_path / "half.gguf", checkpoint, "q8_0", patterns=[("position_embd", TensorType.F16)]
    )
    positions = checkpoint.tensors["position_embd.weight"].array()
    read = ops.dequantize(half.tensors["position_embd.weight"])
    assert np.array_equal(read, positions.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("kind", [TensorType.F16, TensorType.BF16])
@pytest.mark.parametrize("mix", [find_mix("q4_0"), None])
def test_positions_of_any_type_become_those_that_legacy_files_have(
    checkpoint: Checkpoint, tmp_path: Path, mix: Mix | None, kind: TensorType
) -> None:
    half = requantized(
        tmp_path / "half.gguf", checkpoint, "f16", patterns=[("position_embd", kind)]
    )
    types, _ = plan(half, Choice(mix=mix, legacy=True))
    formats.write(tmp_path / "m.bin", half, quantize(half, types, legacy=True), legacy=True)
    found = formats.read(tmp_path / "m.bin").tensors["position_embd.weight"]
    assert np.array_equal(found.array(), ops.dequantize(half.tensors["position_embd.weight"]))


def test_the_output_type_holds_for_a_tied_embedding(checkpoint: Checkpoint) -> None:
    for choice in (
        Choice(mix=find_mix("q4_0"), output_type=TensorType.F32),
        Choice(mix=find_mix("q4_0"), embedding_type=TensorType.F32),
    ):
        assert kinds(checkpoint, choice, ["token_embd"]) == ["F32"]


def test_f32_makes_everything_f32(checkpoint: Checkpoint, tmp_path: Path) -> None:
    half = requantized(tmp_path / "half.gguf", checkpoint, "f16")
    assert half.type_name == "f16"
    whole = requantized(tmp_path / "whole.gguf", half, "f32")
    assert {tensor.type for tensor in whole.tensors.values()} == {TensorType.F32}
    values = whole.tensors["blk.0.ffn_up.weight"].array()
    assert np.array_equal(values, ops.dequantize(half.tensors["blk.0.ffn_up.weight"]))


def test_a_legacy_file_takes_no_mix(checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="q4_k in a legacy file"):
        plan(checkpoint, Choice(mix=find_mix("q4_k_m"), legacy=True))
    with pytest.raises(InputError, match="none in a legacy file"):
        plan(checkpoint, Choice(mix=find_mix("q4_0"), legacy=True, output_type=TensorType.F32))


def test_rounding_twice_is_warned_of(checkpoint: Checkpoint, tmp_path: Path) -> None:
    once = requantized(tmp_path / "once.gguf", checkpoint, "q8_0")
    _, notes = plan(once, Choice(mix=find_mix("q4_0")))
    assert any("already rounded to q8_0" in note for note in notes)
    assert not plan(once, Choice())[1]


def test_tensors_that_no_model_has_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    strange = dict(checkpoint.tensors) | {
        "blk.7.odd.weight": checkpoint.tensors["output_norm.bias"]
    }
    with pytest.raises(FormatError, match=r"blk\.7\.odd\.weight"):
        plan(Checkpoint(checkpoint.config, checkpoint.vocab, strange), Choice())
    del strange["blk.7.odd.weight"], strange["blk.1.ffn_up.bias"]
    with pytest.raises(FormatError, match=r"blk.1.ffn_up.bias: no such tensor"):
        plan(Checkpoint(checkpoint.config, checkpoint.vocab, strange), Choice())


# ------------------------------------------------------------------------------------------------
# The bytes


@pytest.mark.parametrize("name", ["q4_0", "q4_k_m", "iq4_nl"])
@pytest.mark.usefixtures("core_restored")
def test_the_bytes_depend_on_no_number_of_threads(
    original: Checkpoint, tmp_path: Path, name: str
) -> None:
    files = []
    for n in (1, 2, 5):
        ops.set_n_threads(n)
        requantized(tmp_path / "x.gguf", original, name)
        files.append((tmp_path / "x.gguf").read_bytes())
    assert files[0] == files[1] == files[2]


def test_a_damaged_weight_is_named_and_nothing_is_written(tmp_path: Path, tiny: TinyModel) -> None:
    tiny.weights["blk.1.ffn_up.weight"][7, 5] = np.nan
    damaged = formats.read(write_gguf(tmp_path / "in.gguf", tiny))
    with pytest.raises(FormatError, match=r"blk.1.ffn_up.weight: found nan in row 7, column 5"):
        requantized(tmp_path / "out.gguf", damaged, "q4_0")
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_a_weight_too_large_for_f16_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    tiny.weights["blk.1.ffn_up.weight"][7, 5] = 1e6
    large = formats.read(write_gguf(tmp_path / "in.gguf", tiny))
    with pytest.raises(FormatError, match=r"blk.1.ffn_up.weight: found a weight too large"):
        requantized(tmp_path / "out.gguf", large, "f16")
    assert np.isfinite(large.tensors["blk.1.ffn_up.weight"].array()).all()


@pytest.mark.parametrize("name", ["blk.0.attn_norm.bias", "token_embd.weight"])
def test_check_reads_every_weight(tmp_path: Path, tiny: TinyModel, name: str) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny)
    assert sum(check_finite(formats.read(path))) == formats.read(path).nbytes
    tiny.weights[name].reshape(-1)[-1] = np.inf
    with pytest.raises(FormatError, match=rf"{name}: found inf in row \d+, column 31"):
        sum(check_finite(formats.read(write_gguf(path, tiny))))
