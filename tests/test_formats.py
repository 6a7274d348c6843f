"""Every model file becomes the same Checkpoint, and every bad one a FormatError that names it."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import (
    WRITERS,
    GGUFTensor,
    TinyModel,
    Value,
    as_f32,
    gguf_tensors,
    hf_tokenizer,
    hf_weights,
    make_tiny,
    write_gguf,
    write_hf,
    write_legacy,
)
from starcoder import formats, ops
from starcoder.checkpoint import Checkpoint
from starcoder.errors import FormatError
from starcoder.tensor import Tensor, TensorType

EDGES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63, 2**64 - 1)


def fails(path: Path, *words: str) -> FormatError:
    """Reading ends in a FormatError of one line that names the file and has these words."""
    with pytest.raises(FormatError) as caught:
        formats.read(path)
    message = str(caught.value)
    for word in (path.name, *words):
        assert word in message
    assert message.isprintable()
    assert len(message) < 1000
    return caught.value


# ------------------------------------------------------------------------------------------------
# The same model, whatever the file


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_three_formats_give_equal_checkpoints(tmp_path: Path, n_kv_heads: int, tied: bool) -> None:
    model = make_tiny(n_kv_heads=n_kv_heads, tied=tied)
    gguf = formats.read(write_gguf(tmp_path / "gguf", model))
    legacy = formats.read(write_legacy(tmp_path / "legacy", model))
    hf = formats.read(write_hf(tmp_path / "hf", model, weights=interleaved(model)))
    assert gguf.config.n_kv_heads == n_kv_heads
    assert ("output.weight" in gguf.tensors) is not tied
    assert gguf == legacy == hf


def interleaved(model: TinyModel) -> dict[str, np.ndarray]:
    """The weights with multi-head projections as Hugging Face has them: head by head Q, K, V."""
    weights = hf_weights(model)
    for name, array in weights.items():
        if "c_attn" in name and model.n_kv_heads > 1:
            rows = array.reshape(3, model.n_heads, model.head_dim, -1).swapaxes(0, 1)
            weights[name] = np.ascontiguousarray(rows).reshape(array.shape)
    return weights


def test_tensors_hold_what_was_written(tiny: TinyModel, tiny_path: Path) -> None:
    tensors = formats.read(tiny_path).tensors
    assert tensors.keys() == tiny.weights.keys()
    for name, array in tiny.weights.items():
        assert np.array_equal(tensors[name].array(), array)


def test_vocabulary_is_bytes_with_padding_empty(tiny: TinyModel, tiny_path: Path) -> None:
    vocab = formats.read(tiny_path).vocab
    n = len(tiny.tokens)
    assert list(vocab.tokens[:n]) == tiny.tokens
    assert set(vocab.tokens[n:]) == {b""}
    assert vocab.special_ids == set(range(5))
    spelled = [(vocab.tokens[a], vocab.tokens[b]) for a, b in vocab.merges.tolist()]
    assert spelled == tiny.merges
    assert (vocab.eos_id, vocab.bos_id, vocab.split_digits) == (0, 0, True)


def test_gguf_2_and_shards_change_nothing(tmp_path: Path, tiny: TinyModel) -> None:
    one = formats.read(write_gguf(tmp_path / "v3", tiny))
    assert formats.read(write_gguf(tmp_path / "v2", tiny, version=2)) == one
    assert formats.read(write_hf(tmp_path / "shards", tiny, n_shards=3)) == one


def test_oracle_is_equal_in_three_formats(oracle: Path) -> None:
    gguf, hf = formats.read(oracle / "f32.gguf"), formats.read(oracle / "hf")
    legacy = formats.read(oracle / "legacy-f32.bin")
    assert gguf == hf
    assert (gguf.config, dict(gguf.tensors)) == (legacy.config, dict(legacy.tensors))
    # The oracle's vocabulary lacks the merges of its first 14 merged tokens. The legacy file has
    # none to lack, so there these tokens are reachable.
    assert np.array_equal(legacy.vocab.merges[14:], gguf.vocab.merges)
    assert replace(legacy.vocab, merges=gguf.vocab.merges) == gguf.vocab


def test_oracle_f16_is_equal_in_gguf_and_legacy(oracle: Path) -> None:
    gguf, legacy = formats.read(oracle / "f16.gguf"), formats.read(oracle / "legacy-f16.bin")
    assert dict(gguf.tensors) == dict(legacy.tensors)


def test_every_oracle_file_opens(oracle: Path) -> None:
    for path in (*oracle.glob("*.gguf"), *oracle.glob("legacy-*.bin")):
        assert formats.read(path).config.n_kv_heads == 1


def test_files_of_llama_cpp_and_ggml_hold_one_model(data: Path) -> None:
    gguf = formats.read(data / "gpt_bigcode-q4_0.gguf")
    legacy = formats.read(data / "gpt_bigcode-legacy-q4_0.bin")
    assert gguf.config == legacy.config
    assert gguf.vocab.tokens == legacy.vocab.tokens
    assert gguf.tensors.keys() == legacy.tensors.keys()
    for name, tensor in gguf.tensors.items():
        assert tensor.shape == legacy.tensors[name].shape
        if len(tensor.shape) == 1:
            assert tensor == legacy.tensors[name]
    assert (gguf.type_name, legacy.type_name) == ("q4_0", "q4_0")


# ------------------------------------------------------------------------------------------------
# Nothing is copied that need not be


def owner(tensor: Tensor) -> Any:
    array: Any = tensor.data
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_matrices_alone_stay_in_the_mapped_file(tmp_path: Path, tiny: TinyModel) -> None:
    for path in (write_gguf(tmp_path / "gguf", tiny), write_hf(tmp_path / "hf", tiny)):
        for name, tensor in formats.read(path).tensors.items():
            is_matrix = len(tensor.shape) == 2 and name != "position_embd.weight"
            assert isinstance(owner(tensor), mmap.mmap) is is_matrix
            assert not tensor.data.flags.writeable


def test_legacy_weights_stay_in_the_mapped_file_but_for_folded_ones(
    tmp_path: Path, tiny: TinyModel
) -> None:
    tensors = formats.read(write_legacy(tmp_path / "m.bin", tiny)).tensors
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2 and "attn_qkv" not in name and name != "position_embd.weight":
            assert isinstance(owner(tensor), mmap.mmap)


def test_vectors_and_positions_are_aligned_floats_in_every_format(tmp_path: Path) -> None:
    model = make_tiny()
    halves = [
        GGUFTensor(t.name, t.shape, 1, np.frombuffer(t.data, "<f4").astype("<f2").tobytes())
        for t in gguf_tensors(model)
    ]
    f16 = {name: array.astype(np.float16) for name, array in hf_weights(model).items()}

    def half(name: str, array: np.ndarray) -> tuple[int, bytes]:
        return 1, array.astype("<f2").tobytes()

    paths = [
        write_gguf(tmp_path / "gguf", model, tensors=halves),
        write_hf(tmp_path / "hf", model, weights=f16),
        write_legacy(tmp_path / "legacy", model, ftype=1, encode=half),
    ]
    for path in paths:
        for name, tensor in formats.read(path).tensors.items():
            is_kept = name == "position_embd.weight" and path.name == "gguf"
            plain = len(tensor.shape) == 1 or (name == "position_embd.weight" and not is_kept)
            assert tensor.type is (TensorType.F32 if plain else TensorType.F16)
            if plain or is_kept:
                expected = model.weights[name].astype(np.float16).astype(np.float32)
                found = ops.dequantize(tensor) if is_kept else tensor.array()
                assert np.array_equal(found, expected)
                assert tensor.data.ctypes.data % 4 == 0


def test_bf16_vectors_become_f32(tmp_path: Path, tiny: TinyModel) -> None:
    tensors = [
        GGUFTensor(
            t.name, t.shape, 30, (np.frombuffer(t.data, "<u4") >> 16).astype("<u2").tobytes()
        )
        for t in gguf_tensors(tiny)
    ]
    checkpoint = formats.read(write_gguf(tmp_path / "bf16.gguf", tiny, tensors=tensors))
    bits = tiny.weights["output_norm.bias"].view(np.uint32) & 0xFFFF0000
    assert np.array_equal(checkpoint.tensors["output_norm.bias"].array(), bits.view(np.float32))
    assert checkpoint.tensors["blk.0.ffn_up.weight"].type is TensorType.BF16


# ------------------------------------------------------------------------------------------------
# What the formats leave open


def test_gguf_without_marks_knows_special_tokens_by_name(tmp_path: Path, tiny: TinyModel) -> None:
    marked = formats.read(write_gguf(tmp_path / "marked", tiny))
    kinds = {"tokenizer.ggml.token_type": None, "tokenizer.ggml.pre": None}
    assert formats.read(write_gguf(tmp_path / "bare", tiny, keys=kinds)) == marked


def test_old_padding_marked_as_user_defined_is_padding(tmp_path: Path, tiny: TinyModel) -> None:
    kinds = [3] * 5 + [1] * (len(tiny.tokens) - 5)
    kinds += [4] * (tiny.n_vocab - len(kinds))
    keys = {"tokenizer.ggml.token_type": Value("i32", kinds)}
    vocab = formats.read(write_gguf(tmp_path / "old.gguf", tiny, keys=keys)).vocab
    assert vocab.tokens[-1] == b""
    assert vocab.special_ids == set(range(5))


@pytest.mark.parametrize("added", ["<|user|> é", "two\nlines", "\0 zero\0"])
def test_gguf_added_tokens_are_plain_text(tmp_path: Path, tiny: TinyModel, added: str) -> None:
    texts = [*tiny.specials, added, *["[PAD9]"] * (tiny.n_vocab - 6)]
    kinds = [3] * 5 + [4] + [1] * (tiny.n_vocab - 6)
    keys = {
        "tokenizer.ggml.tokens": Value("str", texts),
        "tokenizer.ggml.token_type": Value("i32", kinds),
        "tokenizer.ggml.merges": Value("str", []),
    }
    vocab = formats.read(write_gguf(tmp_path / "added.gguf", tiny, keys=keys)).vocab
    assert vocab.tokens[5] == added.encode()
    assert 5 in vocab.special_ids
    assert (vocab.tokens[8], vocab.tokens[9]) == (b"[PAD9]", b"")


def test_long_and_empty_tokens_are_read_as_they_are(tmp_path: Path, tiny: TinyModel) -> None:
    texts = [*tiny.specials, "x" * 256, "y" * 700, "", "", "z" * 512]
    texts += ["Ġ" * 65] * (tiny.n_vocab - len(texts))
    keys = {
        "tokenizer.ggml.tokens": Value("str", texts),
        "tokenizer.ggml.merges": Value("str", []),
        "tokenizer.ggml.token_type": None,
    }
    tokens = formats.read(write_gguf(tmp_path / "long.gguf", tiny, keys=keys)).vocab.tokens
    assert [t.decode() for t in tokens[:10]] == texts[:10]
    assert set(tokens[10:]) == {b" " * 65}


@pytest.mark.parametrize(("word", "kind"), [("gelu", "gelu_erf"), ("gelu_new", "gelu_tanh")])
def test_activation_is_what_the_file_says(
    tmp_path: Path, tiny: TinyModel, word: str, kind: str
) -> None:
    keys = {"starcoder.activation_function": Value("str", word)}
    gguf = formats.read(write_gguf(tmp_path / "gguf", tiny, keys=keys))
    hf = formats.read(write_hf(tmp_path / "hf", tiny, config={"activation_function": word}))
    assert gguf.config.activation == hf.config.activation == kind


def test_missing_head_count_kv_means_one(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {"starcoder.attention.head_count_kv": None}
    assert formats.read(write_gguf(tmp_path / "m.gguf", tiny, keys=keys)).config.n_kv_heads == 1


def test_key_copies_that_differ_make_a_multi_head_model(tmp_path: Path, tiny: TinyModel) -> None:
    def differ(name: str, array: np.ndarray) -> tuple[int, bytes]:
        array = array.copy()
        if name == "blk.1.attn_qkv.bias":
            array[-1] += 1  # one value bias of the last head
        return as_f32(name, array)

    checkpoint = formats.read(write_legacy(tmp_path / "m.bin", tiny, encode=differ))
    assert checkpoint.config.n_kv_heads == tiny.n_heads
    assert checkpoint.tensors["blk.0.attn_qkv.weight"].shape == (3 * tiny.dim, tiny.dim)


def test_legacy_end_of_text_goes_by_name(tmp_path: Path, tiny: TinyModel) -> None:
    tiny.tokens = [*tiny.tokens[5:], *tiny.tokens[:5]]  # SantaCoder's are the last
    vocab = formats.read(write_legacy(tmp_path / "m.bin", tiny)).vocab
    assert vocab.eos_id == len(tiny.tokens) - 5
    assert vocab.special_ids == set(range(len(tiny.tokens) - 5, len(tiny.tokens)))
    assert vocab.tokens[vocab.eos_id] == b"<|endoftext|>"


def test_hf_merges_may_be_lists_and_digits_unsplit(tmp_path: Path, tiny: TinyModel) -> None:
    table = hf_tokenizer(tiny)
    table["model"]["merges"] = [merge.split(" ") for merge in table["model"]["merges"]]
    table["pre_tokenizer"] = table["pre_tokenizer"]["pretokenizers"][1]
    vocab = formats.read(write_hf(tmp_path / "lists", tiny, tokenizer=table)).vocab
    assert not vocab.split_digits
    assert replace(vocab, split_digits=True) == formats.read(write_hf(tmp_path / "hf", tiny)).vocab


def test_ends_that_gpt2_left_in_a_config_mean_the_end_of_text(
    tmp_path: Path, tiny: TinyModel
) -> None:
    ids = {"eos_token_id": 50256, "bos_token_id": 50256}
    vocab = formats.read(write_hf(tmp_path / "hf", tiny, config=ids)).vocab
    assert (vocab.eos_id, vocab.bos_id) == (0, 0)


def test_attention_masks_of_old_hf_files_are_passed_over(tmp_path: Path, tiny: TinyModel) -> None:
    weights = hf_weights(tiny)
    weights["transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), bool)
    assert formats.read(write_hf(tmp_path / "old", tiny, weights=weights)).tensors.keys() == (
        tiny.weights.keys()
    )


# ------------------------------------------------------------------------------------------------
# Quantization versions of legacy files


def v1_q4_0(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """Blocks of quantization version 1: f32 scale, then the nibbles. The scale is 0.5."""
    if array.ndim == 1 or name == "position_embd.weight":
        return as_f32(name, array)
    n = array.size // 32
    nibbles = np.resize(np.arange(256, dtype=np.uint8), (n, 16))
    if "attn_qkv" in name:
        nibbles[:] = 7  # all heads equal
    blocks = np.concatenate([np.full((n, 1), 0.5, "<f4").view(np.uint8), nibbles], axis=1)
    return 2, blocks.tobytes()


def v1_q8_0(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """The same for q8_0. The scale is a third: no 16-bit number."""
    if array.ndim == 1 or name == "position_embd.weight":
        return as_f32(name, array)
    return 8, (struct.pack("<f", 1 / 3) + b"\5" * 32) * (array.size // 32)


def test_scales_of_version_1_become_16_bits(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "v1.bin", tiny, ftype=1002, encode=v1_q4_0)
    tensor = formats.read(path).tensors["blk.0.ffn_up.weight"]
    blocks = tensor.data.reshape(-1, 18)
    assert tensor.type is TensorType.Q4_0
    assert set(blocks[:, :2].copy().view("<f2").ravel().tolist()) == {0.5}
    expected = np.resize(np.arange(256, dtype=np.uint8), (len(blocks), 16))
    assert np.array_equal(blocks[:, 2:], expected)


def test_scales_of_version_1_are_rounded_to_nearest(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "v1.bin", tiny, ftype=1007, encode=v1_q8_0)
    blocks = formats.read(path).tensors["token_embd.weight"].data.reshape(-1, 34)
    assert set(blocks[:, :2].copy().view("<f2").ravel().tolist()) == {float(np.float16(1 / 3))}
    assert set(blocks[:, 2:].ravel().tolist()) == {5}


def test_a_scale_beyond_16_bits_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    def large(name: str, array: np.ndarray) -> tuple[int, bytes]:
        number, raw = v1_q4_0(name, array)
        return number, struct.pack("<f", 1e5) + raw[4:] if number == 2 else raw

    path = write_legacy(tmp_path / "v1.bin", tiny, ftype=1002, encode=large)
    fails(path, "model/wte", "scale of 100000", "65504")


def test_quantization_version_0_is_refused_by_name(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "v0.bin", tiny, ftype=2, encode=v1_q4_0)
    fails(path, "Q4_0", "quantization version 0", "convert the original weights again")


@pytest.mark.parametrize("ftype", [0, 1, 1001, 2001])
def test_unquantized_files_are_read_whatever_their_version(
    tmp_path: Path, tiny: TinyModel, ftype: int
) -> None:
    assert formats.read(write_legacy(tmp_path / "m.bin", tiny, ftype=ftype)).type_name == "f32"


# ------------------------------------------------------------------------------------------------
# What is no model at all


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    fails(tmp_path / "absent.gguf", "no such file")
    for name, content, word in (
        ("empty.gguf", b"", "empty"),
        ("short.gguf", b"GG", "found a file that starts with"),
        ("text.gguf", b"hello world", "hell"),
        ("torch.bin", b"PK\x03\x04rest", "safetensors"),
        ("lfs.gguf", b"version https://git-lfs", "git lfs pull"),
    ):
        (tmp_path / name).write_bytes(content)
        fails(tmp_path / name, word)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fails(tmp_path / "pipe", "no regular file")


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "nul\0byte"):
        with pytest.raises(FormatError):
            formats.read(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_without_its_files_is_refused(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / name).unlink()
    fails(path, name, "no such file")


def test_a_directory_with_pickles_only_gets_advice(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    fails(path, "save the model as safetensors")


# ------------------------------------------------------------------------------------------------
# GGUF, wrong in one place


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", Value("str", "llama"), ["'llama'", "starcoder"]),
        ("general.architecture", Value("u32", 1), ["a string"]),
        ("general.architecture", None, ["no such key"]),
        ("general.alignment", Value("u32", 24), ["24", "power of two"]),
        ("general.alignment", Value("u32", 2**31), ["4096"]),
        ("general.alignment", Value("str", "32"), ["whole number"]),
        ("starcoder.context_length", Value("u32", 0), ["n_ctx"]),
        ("starcoder.context_length", Value("f32", 1.0), ["whole number"]),
        ("starcoder.embedding_length", Value("i32", -32), ["dim"]),
        ("starcoder.embedding_length", Value("u64", 2**63), ["dim"]),
        ("starcoder.block_count", Value("u32", 4096), ["n_layers", "1024"]),
        ("starcoder.attention.head_count", Value("u32", 0), ["n_heads"]),
        ("starcoder.attention.head_count", Value("u32", 5), ["divisor"]),
        ("starcoder.attention.head_count_kv", Value("u32", [1, 1]), ["whole number"]),
        ("starcoder.attention.layer_norm_epsilon", Value("f32", float("nan")), ["norm_eps"]),
        ("starcoder.attention.layer_norm_epsilon", Value("f32", -1.0), ["norm_eps"]),
        ("starcoder.activation_function", Value("str", "relu"), ["relu", "gelu"]),
        ("tokenizer.ggml.model", Value("str", "llama"), ["gpt2"]),
        ("tokenizer.ggml.pre", Value("str", "llama-bpe"), ["unsupported pre-tokenizer"]),
        ("tokenizer.ggml.tokens", Value("u32", [1, 2, 3]), ["array of strings"]),
        ("tokenizer.ggml.tokens", Value("str", []), ["no token"]),
        ("tokenizer.ggml.tokens", Value("str", "abc"), ["array of strings"]),
        ("tokenizer.ggml.tokens", Value("str", ["a", b"\xff", "c"]), ["UTF-8"]),
        ("tokenizer.ggml.tokens", Value("str", ["a", "b c", "d"]), ["token 1", "no byte"]),
        ("tokenizer.ggml.tokens", Value("str", ["a", "b\n", "d"]), ["no byte"]),
        ("tokenizer.ggml.tokens", Value("str", ["a", "b" * 5000]), ["4096"]),
        ("tokenizer.ggml.tokens", Value("str", ["b" * 9000]), ["8193"]),
        ("tokenizer.ggml.tokens", Value("str", ["b" * 4096] * 1100), ["more than 4194304 bytes"]),
        ("tokenizer.ggml.token_type", Value("i32", [1, 2, 3]), ["320"]),
        ("tokenizer.ggml.token_type", Value("u8", [1] * 320), ["32-bit"]),
        ("tokenizer.ggml.token_type", Value("i32", [1] * 319 + [9]), ["9"]),
        ("tokenizer.ggml.merges", Value("str", ["ab"]), ["two texts"]),
        ("tokenizer.ggml.merges", Value("str", ["a b c", "d"]), ["two texts"]),
        ("tokenizer.ggml.merges", Value("str", ["a Ω"]), ["merge 0"]),
        ("tokenizer.ggml.merges", Value("str", ["Ġ z", "z q"]), ["tokens"]),
        ("tokenizer.ggml.eos_token_id", Value("str", "0"), ["whole number"]),
        ("general.name", Value("u32", 7), ["a string"]),
        ("general.architecture", Value("str", b"\xff\xfe"), ["UTF-8"]),
        ("general.type", Value("str", "adapter"), ["LoRA adapter", "merge"]),
    ],
)
def test_bad_gguf_metadata_is_refused(
    tmp_path: Path, tiny: TinyModel, key: str, value: Value | None, words: list[str]
) -> None:
    keys = {"tokenizer.ggml.token_type": None} if key == "tokenizer.ggml.tokens" else {}
    fails(write_gguf(tmp_path / "bad.gguf", tiny, keys=keys | {key: value}), *words)


def test_a_name_that_is_no_utf8_is_only_shown_otherwise(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {"general.name": Value("str", "größer".encode("latin-1"))}
    path, out = write_gguf(tmp_path / "x.gguf", tiny, keys=keys), tmp_path / "out.gguf"
    found = formats.read(path)
    assert found.config.name == "gr\ufffd\ufffder"
    formats.write(out, found)
    assert formats.read(out).tensors == found.tensors


def with_tensor(model: TinyModel, i: int, **changes: Any) -> list[GGUFTensor]:
    tensors = gguf_tensors(model)
    tensors[i] = replace(tensors[i], **changes)
    return tensors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": 16}, ["type 16", "F32"]),
        ({"type": 2**32 - 1}, ["type 4294967295"]),
        ({"type": 12}, ["rows of 32", "256"]),
        ({"offset": 2**63}, ["attn_qkv"]),
        ({"offset": 7}, ["offset 7"]),
        ({"offset": 0}, ["after tensor"]),
        ({"offset": 1 << 40}, ["only 0 bytes left"]),
        ({"shape": (0, 32)}, ["at least 1"]),
        ({"shape": (2**40, 2**40)}, ["bytes left in the file"]),
        ({"shape": (2**63, 2**62, 4)}, ["bytes left in the file"]),
        ({"shape": (1, 1, 1, 1, 1)}, ["5 dimensions"]),
        ({"shape": ()}, ["0 dimensions"]),
        ({"name": "token_embd.weight"}, ["twice"]),
        ({"name": "n" * 65}, ["65", "64"]),
        ({"name": "line\n\x1b[2J", "type": 16}, ["line??[2J"]),
    ],
)
def test_bad_gguf_tensors_are_refused(
    tmp_path: Path, tiny: TinyModel, changes: dict[str, Any], words: list[str]
) -> None:
    tensors = with_tensor(tiny, 2, **changes)
    fails(write_gguf(tmp_path / "bad.gguf", tiny, tensors=tensors), *words)


def test_gguf_of_other_versions_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    for version, word in ((1, "version 1"), (4, "version 4"), (3 << 24, "big-endian")):
        fails(write_gguf(tmp_path / "v.gguf", tiny, version=version), word)


def test_gguf_keys_come_once(tmp_path: Path, tiny: TinyModel) -> None:
    raw = write_gguf(tmp_path / "m.gguf", tiny).read_bytes()
    renamed = raw.replace(b"starcoder.block_count", b"starcoder.block_counu").replace(
        b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"
    )
    (tmp_path / "m.gguf").write_bytes(renamed)
    fails(tmp_path / "m.gguf", "eos_token_id", "twice")


# ------------------------------------------------------------------------------------------------
# Legacy files, wrong in one place


def patched(path: Path, at: int, fields: str, *values: Any) -> Path:
    raw = bytearray(path.read_bytes())
    struct.pack_into(fields, raw, at, *values)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (4, 321, ["320 tokens", "321"]),
        (4, -1, ["n_vocab"]),
        (12, 33, ["n_heads"]),
        (12, 64, ["attn_qkv"]),
        (16, 0, ["n_heads"]),
        (20, 3, ["no blk.2."]),
        (20, 1, ["model/h1"]),
        (20, 2**31 - 1, ["n_layers"]),
        (24, 4, ["ftype"]),
        (24, 3002, ["ftype"]),
        (28, 2**30, ["vocabulary"]),
        (32, 2**31 - 1, ["token 0"]),
        (32, -1, ["token 0"]),
    ],
)
def test_bad_legacy_headers_are_refused(
    tmp_path: Path, tiny: TinyModel, at: int, value: int, words: list[str]
) -> None:
    fails(patched(write_legacy(tmp_path / "bad.bin", tiny), at, "<i", value), *words)


def first_tensor(path: Path) -> int:
    return path.read_bytes().index(b"model/wte") - 20


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        (0, 5, "5 dimensions"),
        (0, 0, "0 dimensions"),
        (0, 2**31 - 1, "dimensions"),
        (1, 0, "name of 0"),
        (1, 2**31 - 1, "name of"),
        (2, 4, "type 4"),
        (2, 30, "type 30"),
        (3, -32, "shape"),
        (3, 0, "shape"),
        (4, 2**31 - 1, "bytes left"),
    ],
)
def test_bad_legacy_tensors_are_refused(
    tmp_path: Path, tiny: TinyModel, field: int, value: int, word: str
) -> None:
    path = write_legacy(tmp_path / "bad.bin", tiny)
    fails(patched(path, first_tensor(path) + 4 * field, "<i", value), word)


def test_legacy_tensors_have_known_names_once_each(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "bad.bin", tiny)
    for old, new in ((b"model/wpe", b"model/wte"), (b"model/wpe", b"model/xyz")):
        bad = tmp_path / "worse.bin"
        bad.write_bytes(path.read_bytes().replace(old, new))
        fails(bad, new.decode(), "once")


def test_bytes_after_the_last_legacy_tensor_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "long.bin", tiny)
    path.write_bytes(path.read_bytes() + b"\0" * 64)
    fails(path, "tensor header")


# ------------------------------------------------------------------------------------------------
# Hugging Face directories, wrong in one place


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("n_embd", "32"),
        ("n_embd", True),
        ("n_embd", None),
        ("n_embd", -32),
        ("n_embd", 10**30),
        ("n_embd", 10**4000),
        ("n_head", 0),
        ("n_layer", 3),
        ("n_layer", 10**9),
        ("vocab_size", 16),
        ("vocab_size", 10**9),
        ("vocab_size", 1 << 24),
        ("multi_query", "yes"),
        ("multi_query", False),
        ("num_key_value_heads", 2),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", "1e-5"),
        ("eos_token_id", "0"),
        ("bos_token_id", [0, True]),
        ("tie_word_embeddings", False),
    ],
)
def test_bad_hf_configurations_are_refused(
    tmp_path: Path, tiny: TinyModel, key: str, value: Any
) -> None:
    fails(write_hf(tmp_path / "hf", tiny, config={key: value}))


def tokenizer_with(model: TinyModel, path: str, value: Any) -> dict[str, Any]:
    table: Any = hf_tokenizer(model)
    target = table
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in keys:
        target = target[key]
    target[last] = value
    return dict(table)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("normalizer", {"type": "NFC"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 7}),
        ("pre_tokenizer/pretokenizers/0/individual_digits", False),
        ("pre_tokenizer/pretokenizers/1/add_prefix_space", True),
        ("pre_tokenizer/pretokenizers/1/use_regex", False),
        ("model", []),
        ("model/type", "Unigram"),
        ("model/byte_fallback", True),
        ("model/ignore_merges", True),
        ("model/dropout", 0.1),
        ("model/vocab", None),
        ("model/vocab", {"a": "0"}),
        ("model/vocab", {"a": True}),
        ("model/vocab", {"a": 7, "b": 7}),
        ("model/vocab", {"a": 320}),
        ("model/vocab", {"a": -1}),
        ("model/vocab", {"a b": 9}),
        ("model/vocab", {"\ud800": 9}),
        ("model/vocab", {"x" * 5000: 9}),
        ("model/merges", None),
        ("model/merges", [1]),
        ("model/merges", ["a b c"]),
        ("model/merges", [["a"]]),
        ("model/merges", [["a", 1]]),
        ("model/merges", ["q q"]),
        ("added_tokens/0", 7),
        ("added_tokens/0/id", 320),
        ("added_tokens/0/id", 1),
        ("added_tokens/0/id", None),
        ("added_tokens/0/content", ""),
        ("added_tokens/0/content", "\ud800"),
        ("added_tokens/0/content", "!"),
    ],
)
def test_bad_tokenizers_are_refused(
    tmp_path: Path, tiny: TinyModel, where: str, value: Any
) -> None:
    table = tokenizer_with(tiny, where, value)
    fails(write_hf(tmp_path / "hf", tiny, tokenizer=table), "tokenizer.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nul",
        '{"a":1,"a":2}',
        '{"a":NaN}',
        "[" * 100_000,
        "\ufeff{}",
        '{"a":' + "9" * 5000 + "}",
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_bad_json_is_refused(tmp_path: Path, tiny: TinyModel, name: str, text: str) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / name).write_text(text)
    fails(path, name)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = (path / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def put_header(path: Path, header: Any, body: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


WPE = "transformer.wpe.weight"


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F8_E4M3"},
        {"dtype": "F16"},
        {"dtype": "I32"},
        {"dtype": 4},
        {"shape": [16, 33]},
        {"shape": [4194305, 4194305, 211106198978564]},
        {"shape": [10**4000] * 9},
        {"shape": [-16, -32]},
        {"shape": [16.0, 32.0]},
        {"shape": 512},
        {"data_offsets": [0]},
        {"data_offsets": [2048, 0]},
        {"data_offsets": [2**64, 2**64 + 2048]},
        {"data_offsets": None},
    ],
)
def test_bad_safetensors_entries_are_refused(
    tmp_path: Path, tiny: TinyModel, change: dict[str, Any]
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    header, body = header_of(path)
    header[WPE] |= change
    fails(put_header(path, header, body), "tensor transformer.")


def test_bad_safetensors_files_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    header, body = header_of(path)
    other = {("transformer.other" if name == WPE else name): v for name, v in header.items()}
    for bad, rest in (
        (header, body + b"\0"),  # bytes that belong to no tensor
        (header, body[:-1]),
        (other, body),  # an unknown name
        ({k: v for k, v in header.items() if k != WPE}, body),  # a gap
        (b'{"a":1,"a":2}', b""),
        (b"\xff", b""),
        ({"a": 1}, b""),
        ({}, b""),
    ):
        fails(put_header(path, bad, rest))
    (path / "model.safetensors").write_bytes(b"\xff" * 8)
    fails(path, "header")


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a\\b.safetensors", 7, "x.bin"]
)
def test_shards_have_plain_names(tmp_path: Path, tiny: TinyModel, name: Any) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=2)
    index = path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"][WPE] = name
    index.write_text(json.dumps(table))
    (notice,) = formats.read(path).notices  # the shards are whole by their own names
    assert notice.startswith("model.safetensors.index.json: weight_map: found ")
    (path / "model-00001-of-00002.safetensors").rename(path / "m.safetensors")
    (path / "model-00002-of-00002.safetensors").unlink()
    fails(path, "weight_map", "plain name")


def test_shards_that_lack_tensors_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=2)
    shutil.copy(
        path / "model-00001-of-00002.safetensors", path / "model-00002-of-00002.safetensors"
    )
    fails(path, "weights: found no ", "a part of the download is missing")


# ------------------------------------------------------------------------------------------------
# Truncated and damaged files

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
