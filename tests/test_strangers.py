"""Files that are no model of ours are refused by what they are, with what to do."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from starcoder import FormatError, formats
from tests.helpers.command import Run
from tests.helpers.gguf import Value, write_gguf
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import TinyModel, make_tiny

DAMAGED = "damaged"


def refused(path: Path, *words: str) -> str:
    with pytest.raises(FormatError) as caught:
        formats.read(path)
    message = str(caught.value)
    for word in (str(path), *words):
        assert word in message
    assert DAMAGED not in message
    return message


# ------------------------------------------------------------------------------------------------
# Legacy files of ggml's other examples


def ggml(
    path: Path,
    header: str,
    *numbers: float,
    n_vocab: int,
    counted: bool = False,
    score: bool = False,
    name: str,
) -> Path:
    """The beginning of such a file: header, vocabulary, one tensor of four weights."""
    raw = struct.pack(f"<I{header}", 0x67676D6C, *numbers)
    raw += struct.pack("<i", n_vocab) if counted else b""
    for i in range(n_vocab):
        raw += struct.pack("<i", 3) + b"%03d" % (i % 1000) + (struct.pack("<f", 1) * score)
    raw += struct.pack("<3i2i", 2, len(name), 0, 2, 2) + name.encode() + bytes(16)
    path.write_bytes(raw)
    return path


def gpt_j(path: Path) -> Path:
    numbers = (50400, 2048, 4096, 16, 28, 64, 1)
    return ggml(path, "7i", *numbers, n_vocab=50400, counted=True, name="transformer.wte.weight")


def gpt_neox(path: Path) -> Path:
    numbers = (50254, 2048, 2560, 32, 32, 20, 1, 2002)
    return ggml(path, "8i", *numbers, n_vocab=50254, name="gpt_neox.embed_in.weight")


def gpt_neox_early(path: Path) -> Path:
    numbers = (50254, 2048, 2560, 32, 32, 20, 2)
    return ggml(path, "7i", *numbers, n_vocab=50254, name="gpt_neox.embed_in.weight")


def replit(path: Path) -> Path:
    numbers = (2560, 2048, 32, 32, 32768, 1)
    return ggml(path, "6i", *numbers, n_vocab=32768, score=True, name="transformer.wte.weight")


def mpt(path: Path) -> Path:
    numbers = (4096, 2048, 32, 32, 50432, 8.0, 0.0, 2002)
    return ggml(path, "5i2fi", *numbers, n_vocab=50432, name="transformer.wte.weight")


def mpt_early(path: Path) -> Path:
    numbers = (4096, 2048, 32, 32, 50432, 1)
    return ggml(path, "6i", *numbers, n_vocab=50432, name="transformer.wte.weight")


def llama(path: Path) -> Path:
    numbers = (32000, 4096, 256, 32, 32, 128, 2)
    return ggml(path, "7i", *numbers, n_vocab=32000, name="tok_embeddings.weight")


@pytest.mark.parametrize(
    ("write", "model"),
    [
        *(
            (gpt_j, "GPT-J"),
            (gpt_neox, "GPT-NeoX (Dolly, Pythia"),
            (gpt_neox_early, "GPT-NeoX (Dolly, Pythia"),
        ),
        *((replit, "Replit"), (mpt, "MPT"), (mpt_early, "MPT"), (llama, "LLaMA or BLOOM")),
    ],
)
def test_ggml_files_of_other_models_are_named(
    tmp_path: Path, write: Callable[[Path], Path], model: str
) -> None:
    refused(
        write(tmp_path / "ggml-model.bin"),
        f"a ggml file of the kind {model}",
        "expected a GPTBigCode",
    )


def test_gpt2_is_named_although_its_layout_is_ours(tmp_path: Path) -> None:
    model = make_tiny()
    model.tokens = [b"%05d" % i for i in range(50256)] + [b"<|endoftext|>"]
    model.n_vocab = len(model.tokens)
    refused(write_legacy(tmp_path / "gpt-2.bin", model), "a ggml file of the kind GPT-2")


def test_a_damaged_file_of_ours_is_no_stranger(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "m.bin", tiny)
    raw = bytearray(path.read_bytes())
    raw[28:32] = struct.pack("<i", 319)  # the second number of tokens
    path.write_bytes(raw)
    with pytest.raises(FormatError, match=r"319 tokens.*truncated or damaged"):
        formats.read(path)


# ------------------------------------------------------------------------------------------------
# GGUF


@pytest.mark.parametrize("name", ["llama", "starcoder2", "gpt2", "refact", "qwen2"])
def test_gguf_files_of_other_architectures_are_named(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    keys = {"general.architecture": Value("str", name)}
    path = write_gguf(tmp_path / "m.gguf", tiny, keys=keys)
    refused(path, f"architecture '{name}'", "expected 'starcoder'", "llama.cpp")


def test_gguf_files_that_are_no_model_are_named(tmp_path: Path, tiny: TinyModel) -> None:
    path = tmp_path / "m.gguf"
    adapter = {"general.type": Value("str", "adapter"), "adapter.type": Value("str", "lora")}
    refused(write_gguf(path, tiny, keys=adapter), "a LoRA adapter", "merge it into its model")
    imatrix = {"general.type": Value("str", "imatrix")}
    refused(write_gguf(path, tiny, keys=imatrix), "'imatrix'", "the model itself")
    refused(write_gguf(path, tiny, tensors=[]), "a vocabulary without weights")


# ------------------------------------------------------------------------------------------------
# Whatever else


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("m.gguf", LFS, ("a git-lfs pointer", "git lfs pull")),
        ("m.gguf", b"<!DOCTYPE html><html>", ("a web page", "download the file")),
        ("m.bin", b"\n  <HTML lang=en>", ("a web page",)),
        (
            "m.bin",
            b'{"error": "Repository not found"}',
            ("a web page or its error", "Repository not found"),
        ),
        ("m.json", b'{"model_type": "gpt_bigcode"}', ("a JSON file", "directory")),
        ("m.json", b'{"a": ' + b"[" * 60_000, ("a JSON file",)),
        ("m.bin", b"PK\x03\x04", ("a PyTorch file", "directory")),
        ("m.bin", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", ("a PyTorch file",)),
        ("adapter_model.bin", b"PK\x03\x04", ("a LoRA adapter", "merge")),
        ("m.gguf", b"\x1f\x8b\x08\x00", ("a gzip archive", "unpack")),
        ("lora.bin", b"algg\x01\0\0\0", ("a LoRA adapter", "merge")),
        ("m.bin", b"tjgg\x03\0\0\0", ("a ggjt file", "GGUF")),
        ("m.xyz", b"hello world", ("starts with b'hell'",)),
    ],
)
def test_what_is_no_model_is_named(
    tmp_path: Path, name: str, raw: bytes, words: tuple[str, ...]
) -> None:
    (tmp_path / name).write_bytes(raw)
    refused(tmp_path / name, *words)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "lora.safetensors"])
def test_an_adapter_alone_is_named(tmp_path: Path, name: str) -> None:
    weights = {
        f"base_model.model.transformer.h.0.attn.c_attn.lora_{part}.weight": np.zeros((4, 4), "f4")
        for part in "AB"
    }
    save_file(weights, tmp_path / name)
    refused(tmp_path / name, "a LoRA adapter without its model", "merge_and_unload")


@pytest.mark.parametrize("command", [("-m", "IN", "-p", "x"), ("inspect", "IN"), ("convert", "IN")])
def test_every_command_says_it_in_one_line(
    tmp_path: Path, run: Run, command: tuple[str, ...]
) -> None:
    path = mpt(tmp_path / "mpt.bin")
    args = [str(path) if arg == "IN" else arg for arg in command]
    args += [str(tmp_path / "out.gguf")] if command[0] == "convert" else []
    result = run(*args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "a ggml file of the kind MPT" in result.err
