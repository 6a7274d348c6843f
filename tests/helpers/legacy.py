"""The tiny model as ggml's example wrote it, by a writer of the tests' own."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.helpers.tiny import TinyModel


def tile_heads(model: TinyModel, qkv: np.ndarray) -> np.ndarray:
    """Multi-query rows with the key head and the value head repeated for every query head."""
    q, k, v = np.split(qkv, [model.dim, model.dim + model.head_dim])
    return np.concatenate([q, *[k] * model.n_heads, *[v] * model.n_heads])


Encode = Callable[[str, np.ndarray], tuple[int, bytes]]


def as_f32(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """ggml's number for F32, and the bytes."""
    return 0, np.ascontiguousarray(array, "<f4").tobytes()


def write_legacy(path: Path, model: TinyModel, *, ftype: int = 0, encode: Encode = as_f32) -> Path:
    """The model as ggml's example wrote it; `encode` gives the type and bytes of a tensor."""
    header = (model.n_vocab, model.n_ctx, model.dim, model.n_heads, model.n_layers, ftype)
    out = struct.pack("<I6ii", 0x67676D6C, *header, model.n_vocab)
    for raw in model.tokens + model.tokens[-1:] * (model.n_vocab - len(model.tokens)):
        out += struct.pack("<I", len(raw)) + raw
    for name, array in model.weights.items():
        spec = model.spec(name)
        if spec.axes[0] == "qkv_dim" and model.n_kv_heads == 1:
            array = tile_heads(model, array)
        number, raw = encode(name, array)
        old = f"model/{spec.legacy}".encode()
        out += struct.pack("<3i", array.ndim, len(old), number)
        out += struct.pack(f"<{array.ndim}i", *reversed(array.shape)) + old + raw
    path.write_bytes(out)
    return path
