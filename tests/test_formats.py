"""Every model file becomes the same Checkpoint, whatever its format."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from tests.helpers.gguf import GGUFTensor, Value, gguf_tensors, write_gguf
from tests.helpers.hf import hf_tokenizer, hf_weights, write_hf
from tests.helpers.legacy import as_f32, write_legacy
from tests.helpers.tiny import TinyModel, make_tiny

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
