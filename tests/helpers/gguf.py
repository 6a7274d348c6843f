"""The tiny model as a GGUF file, by a plain and complete writer of the tests' own."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.tiny import TinyModel, printable

GGUF_TYPES = {"u8": 0, "i8": 1, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "u64": 10}
_PACK = {0: "<B", 1: "<b", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}


@dataclass
class Value:
    """A metadata value with its type; a list is an array."""

    type: str
    value: Any

    def encode(self) -> bytes:
        number = GGUF_TYPES[self.type]
        if isinstance(self.value, list):
            head = struct.pack("<IIQ", 9, number, len(self.value))
            return head + b"".join(self._item(number, item) for item in self.value)
        return struct.pack("<I", number) + self._item(number, self.value)

    @staticmethod
    def _item(number: int, item: Any) -> bytes:
        if number == 8:
            raw = item if isinstance(item, bytes) else item.encode()
            return struct.pack("<Q", len(raw)) + raw
        return struct.pack(_PACK[number], item)


def gguf_keys(model: TinyModel) -> dict[str, Value]:
    """The metadata that llama.cpp's converter writes."""
    n_special, n_pads = len(model.specials), model.n_vocab - len(model.tokens)
    texts = [*model.specials, *map(printable, model.tokens[n_special:])]
    texts += [f"[PAD{i}]" for i in range(len(texts), model.n_vocab)]
    kinds = [3] * n_special + [1] * (len(model.tokens) - n_special) + [5] * n_pads
    merges = [f"{printable(left)} {printable(right)}" for left, right in model.merges]
    return {
        "general.architecture": Value("str", model.architecture.gguf),
        "general.name": Value("str", "tiny"),
        **_settings(model),
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.pre": Value("str", "refact"),
        "tokenizer.ggml.tokens": Value("str", texts),
        "tokenizer.ggml.token_type": Value("i32", kinds),
        "tokenizer.ggml.merges": Value("str", merges),
        "tokenizer.ggml.eos_token_id": Value("u32", 0),
        "tokenizer.ggml.bos_token_id": Value("u32", 0),
    }


def _settings(model: TinyModel) -> dict[str, Value]:
    """The numbers; llama.cpp writes no words."""
    kinds = {int: "u32", float: "f32"}
    keys = {setting.field: setting.gguf for setting in model.architecture.settings}
    return {
        f"{model.architecture.gguf}.{key.name}": Value(kinds[key.kind], getattr(model, field))
        for field, key in keys.items()
        if key is not None and key.kind in kinds
    }


@dataclass
class GGUFTensor:
    """A tensor as the file states it, so that tests can state something else."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int = -1  # -1: after the one before


def gguf_tensors(model: TinyModel) -> list[GGUFTensor]:
    """All weights as F32."""
    return [
        GGUFTensor(name, array.shape, 0, np.ascontiguousarray(array, "<f4").tobytes())
        for name, array in model.weights.items()
    ]


def write_gguf(
    path: Path,
    model: TinyModel,
    *,
    version: int = 3,
    keys: Mapping[str, Value | None] | None = None,
    tensors: list[GGUFTensor] | None = None,
    alignment: int = 32,
) -> Path:
    """The model as a GGUF file; `keys` replaces metadata, or removes it with None."""
    table = {k: v for k, v in (gguf_keys(model) | dict(keys or {})).items() if v is not None}
    tensors = gguf_tensors(model) if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(table))
    for key, value in table.items():
        head += struct.pack("<Q", len(key)) + key.encode() + value.encode()
    body = b""
    for t in tensors:
        body += b"\0" * (-len(body) % alignment)
        offset = len(body) if t.offset < 0 else t.offset
        head += struct.pack("<Q", len(t.name)) + t.name.encode()
        head += struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape))
        head += struct.pack("<IQ", t.type, offset)
        body += t.data
    path.write_bytes(head + b"\0" * (-len(head) % alignment) + body)
    return path
