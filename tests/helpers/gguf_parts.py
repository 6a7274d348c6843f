"""GGUF files of the tiny model as other programs write them: in parts, and with tokens as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from starcoder import FormatError, formats
from tests.helpers.gguf import GGUFTensor, Value, gguf_keys, gguf_tensors, write_gguf
from tests.helpers.tiny import TinyModel, printable


@dataclass
class U16:
    """A number of 16 bits, as llama-gguf-split writes which part of what a file is."""

    value: int

    def encode(self) -> bytes:
        return struct.pack("<IH", 2, self.value)


def part(folder: Path, number: int, count: int, name: str = "m") -> Path:
    return folder / f"{name}-{number:05}-of-{count:05}.gguf"


def split(folder: Path, model: TinyModel, count: int = 3, first_tensor: int = 0) -> list[Path]:
    """The model in parts as llama-gguf-split writes them; all keys are in the first."""
    folder.mkdir(exist_ok=True)
    tensors = gguf_tensors(model)
    cuts = [len(tensors) * i // (count - first_tensor) for i in range(count - first_tensor + 1)]
    cuts = [0] * first_tensor + cuts
    paths = []
    for i in range(count):
        paths.append(write_part(folder, model, i, count, tensors[cuts[i] : cuts[i + 1]]))
    return paths


def write_part(
    folder: Path,
    model: TinyModel,
    i: int,
    count: int,
    tensors: list[GGUFTensor],
    marks: Mapping[str, Any] | None = None,
) -> Path:
    keys: dict[str, Any] = {} if i == 0 else dict.fromkeys(gguf_keys(model))
    keys |= {"split.no": U16(i), "split.count": U16(count)}
    keys |= {"split.tensors.count": Value("i32", len(model.weights))}
    path = part(folder, i + 1, count)
    return write_gguf(path, model, keys=keys | dict(marks or {}), tensors=tensors)


def raw_keys(model: TinyModel, merges: str) -> dict[str, Value | None]:
    """The vocabulary as llama.cpp's converter of September 2023 wrote it."""
    tokens = [*model.tokens, *(b"[PAD%d]" % i for i in range(len(model.tokens), model.n_vocab))]
    byte_level = [f"{printable(left)} {printable(right)}" for left, right in model.merges]
    spelled = {
        "byte-level": Value("str", byte_level),
        "raw": Value("str", [left + b" " + right for left, right in model.merges]),
        "empty": Value("str", []),
        "absent": None,
    }
    return {
        "tokenizer.ggml.tokens": Value("str", tokens),
        "tokenizer.ggml.merges": spelled[merges],
        "tokenizer.ggml.token_type": None,
        "tokenizer.ggml.pre": None,
    }


def whole(folder: Path, model: TinyModel) -> Path:
    """The same model in one file."""
    return write_gguf(folder / "whole.gguf", model)


def read_parts(folder: Path) -> list[Path]:
    """The parts that are there, in order."""
    return sorted(folder.glob("*-of-*.gguf"))


def fails(path: Path, *words: str) -> None:
    """Reading ends in an error that has these words."""
    with pytest.raises(FormatError) as caught:
        formats.read(path)
    for word in words:
        assert word in str(caught.value)
