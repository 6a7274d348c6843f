"""What is no model at all, and GGUF files that are wrong in one place, end in one clear error."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from starcoder import formats
from starcoder.errors import FormatError
from tests.helpers.gguf import GGUFTensor, Value, gguf_tensors, write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.refusals import fails
from tests.helpers.tiny import TinyModel

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
        ({"offset": 2**63}, ["output_norm"]),
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
