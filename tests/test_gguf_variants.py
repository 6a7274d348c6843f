"""GGUF files as other programs wrote them: tensors of any type, bounds on the sum."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, FormatError, InputError, MemoryLimitError, formats
from starcoder.core import machine, ops
from starcoder.core.machine import Room
from starcoder.core.tensor import Tensor, TensorType
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.gguf import GGUFTensor, Value, gguf_keys, gguf_tensors, write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.legacy import write_legacy
from tests.helpers.run_model import some_logits
from tests.helpers.tiny import TinyModel, make_tiny

PREFIX = "tokenizer.ggml"


# ------------------------------------------------------------------------------------------------
# Tensors of any type


def wide() -> TinyModel:
    """A model whose rows and vectors are whole blocks of every type."""
    model, rng = make_tiny(), np.random.default_rng(0)
    model.dim = model.hidden_dim = 256
    qkv = 256 + 2 * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, array in model.weights.items():
        rows = qkv if "attn_qkv" in name else 256
        rows = len(array) if name in ("token_embd.weight", "position_embd.weight") else rows
        shapes[name] = (rows, 256) if array.ndim == 2 else (rows,)
    model.weights = {
        name: (rng.standard_normal(shape) * 0.08).astype(np.float32)
        for name, shape in shapes.items()
    }
    return model


def is_vector(name: str, array: np.ndarray) -> bool:
    return array.ndim == 1 or name == "position_embd.weight"


def in_type(kind: TensorType, array: np.ndarray) -> tuple[TensorType, bytes, np.ndarray]:
    """An array in a type, F32 where it is no whole blocks: type, bytes, and what they stand for."""
    if array.shape[-1] % kind.block_len:
        return TensorType.F32, array.tobytes(), array
    tensor = ops.quantize(np.atleast_2d(array), kind)
    return kind, tensor.data.tobytes(), ops.dequantize(tensor).reshape(array.shape)


@pytest.mark.parametrize("kind", TensorType)
def test_norms_biases_and_positions_may_have_any_type(tmp_path: Path, kind: TensorType) -> None:
    model = wide()
    tensors, twin = [], replace(model, weights=dict(model.weights))
    for t in gguf_tensors(model):
        array = model.weights[t.name]
        if is_vector(t.name, array):
            number, raw, twin.weights[t.name] = in_type(kind, array)
            t = replace(t, type=number.value, data=raw)
        tensors.append(t)
    path = write_gguf(tmp_path / "old.gguf", model, tensors=tensors)
    expected = write_gguf(tmp_path / "twin.gguf", twin)
    assert any(t.type == kind for t in tensors)
    found, wanted = formats.read(path), formats.read(expected)
    positions = found.tensors["position_embd.weight"]
    is_kept = kind in (TensorType.F16, TensorType.BF16)  # to be written as it was
    assert positions.type is (kind if is_kept else TensorType.F32)
    if is_kept:
        plain = ops.dequantize(positions).view(np.uint8).reshape(-1)
        as_f32 = Tensor(TensorType.F32, positions.shape, plain)
        found = replace(found, tensors={**found.tensors, "position_embd.weight": as_f32})
    assert found == wanted
    assert np.array_equal(some_logits(path), some_logits(expected))


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (TensorType.F16, b"\x01\x7d"),
        (TensorType.F16, b"\xff\xff"),
        (TensorType.BF16, b"\x81\x7f"),
        (TensorType.F32, b"\x01\x00\x80\x7f"),
        (TensorType.Q8_0, b"\x01\x7d" + bytes(range(32))),
    ],
)
def test_not_a_number_in_a_vector_warns_nobody(
    tmp_path: Path, tiny: TinyModel, kind: TensorType, pattern: bytes
) -> None:
    tensors = gguf_tensors(tiny)
    shape = tensors[1].shape
    raw = pattern * (kind.nbytes(shape) // len(pattern))
    tensors[1] = replace(tensors[1], type=kind.value, data=raw)
    checkpoint = formats.read(write_gguf(tmp_path / "nan.gguf", tiny, tensors=tensors))
    assert np.isnan(ops.dequantize(checkpoint.tensors["position_embd.weight"])).all()


@pytest.mark.parametrize("write", [write_gguf, write_hf, write_legacy])
def test_after_loading_nothing_of_a_file_is_needed(
    tmp_path: Path, tiny: TinyModel, write: Any
) -> None:
    path = write(tmp_path / "m", tiny)
    llm = LLM(path, n_threads=1)
    before = llm.generate("def add(", max_tokens=5, ignore_eos=True).tokens
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("r+b") as raw:
            raw.truncate(0)
    assert llm.generate("def add(", max_tokens=5, ignore_eos=True).tokens == before


def test_more_positions_than_memory_are_refused_unread(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny)
    monkeypatch.setattr(machine, "memory_room", lambda: Room(4000, "memory left in its cgroup"))
    with pytest.raises(MemoryLimitError, match=r"position embeddings of .* at most 4,000"):
        formats.read(path)


# ------------------------------------------------------------------------------------------------
# Bounds on the sum


def hollow(path: Path, n_keys: int, key_len: int, text_len: int) -> Path:
    """A file of keys with long texts of which nothing is on the disk."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, n_keys))
        for i in range(n_keys):
            file.write(struct.pack("<Q", key_len) + f"{i:x}".rjust(key_len, "k").encode())
            file.write(struct.pack("<IQ", 8, text_len))
            file.seek(text_len, 1)
        file.truncate(file.tell() + 64)
    return path


@pytest.mark.parametrize(
    ("n_keys", "key_len", "text_len", "reason"),
    [
        (600, 8, 1 << 20, "header: found more than 67108864 bytes"),
        (3, 8, 1 << 30, "header: found more than 67108864 bytes"),
        (500, 65535, 0, "key: found a length of 65535 bytes, expected at most"),
    ],
)
def test_a_header_is_bounded_in_its_sum(
    tmp_path: Path, n_keys: int, key_len: int, text_len: int, reason: str
) -> None:
    path = hollow(tmp_path / "bomb.gguf", n_keys, key_len, text_len)
    tracemalloc.start()
    with pytest.raises(FormatError, match=reason):
        formats.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_legacy_vocabulary_is_bounded_in_its_sum(tmp_path: Path) -> None:
    path, n = tmp_path / "bomb.bin", 1 << 17
    with path.open("wb") as file:
        file.write(struct.pack("<I7i", 0x67676D6C, n, 16, 32, 4, 2, 0, n))
        for _ in range(n):
            file.write(struct.pack("<i", 4096))
            file.seek(4096, 1)
        file.truncate()
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"more bytes than a vocabulary has.* 4194304 in all"):
        formats.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_an_unused_token_is_no_part_of_a_merge(tmp_path: Path, tiny: TinyModel) -> None:
    left, right = tiny.merges[11]
    kinds = gguf_keys(tiny)[f"{PREFIX}.token_type"].value
    kinds[tiny.tokens.index(left + right)] = 5
    keys = {f"{PREFIX}.token_type": Value("i32", kinds)}
    with pytest.raises(FormatError, match="merge 11 of"):
        formats.read(write_gguf(tmp_path / "m.gguf", tiny, keys=keys))


def test_texts_that_nobody_asks_for_may_be_anything(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {"x.author": Value("str", b"\xff\xfe" * 1000), "x.long": Value("str", "a" * (2 << 20))}
    path = write_gguf(tmp_path / "m.gguf", tiny, keys=keys)
    assert formats.read(path) == formats.read(write_gguf(tmp_path / "plain.gguf", tiny))


def test_a_tensor_more_than_a_model_has_is_no_matter(tmp_path: Path, tiny: TinyModel) -> None:
    tensors = [*gguf_tensors(tiny), GGUFTensor("rope_freqs.weight", (32,), 0, bytes(128))]
    path = write_gguf(tmp_path / "m.gguf", tiny, tensors=tensors)
    assert np.array_equal(some_logits(path), some_logits(write_gguf(tmp_path / "plain.gguf", tiny)))


def test_a_token_without_a_row_stays_an_error_in_every_gguf_file(
    tmp_path: Path, tiny: TinyModel
) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "a.gguf", tiny))
    vocab = replace(checkpoint.vocab, unembedded=frozenset({b"[PAD]"}))
    formats.write(tmp_path / "b.gguf", replace(checkpoint, vocab=vocab))
    formats.write(tmp_path / "c.gguf", formats.read(tmp_path / "b.gguf"))
    found = formats.read(tmp_path / "c.gguf")
    assert found.vocab.unembedded == {b"[PAD]"}
    with pytest.raises(InputError, match=r"\[PAD\]"):
        Tokenizer(found.vocab).encode("x [PAD]")


def test_what_is_carried_is_of_the_file_that_was_read(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny, keys={"general.author": Value("str", "Ada")})
    checkpoint = formats.read(path)
    write_gguf(tmp_path / "new", tiny, keys={"general.author": Value("str", "Bob")})
    (tmp_path / "new").rename(path)
    formats.write(tmp_path / "b.gguf", checkpoint)
    assert b"Ada" in (tmp_path / "b.gguf").read_bytes()
    path.unlink()
    formats.write(tmp_path / "c.gguf", checkpoint)
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
