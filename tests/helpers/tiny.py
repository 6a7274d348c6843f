"""A GPTBigCode model of a few kilobytes, as plain arrays under canonical names.

What the formats make of it on disk is in `gguf`, `legacy` and `hf`, beside this file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

SPECIALS = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
TEXT = """def add(first, second):
    # größer, naïve
    return first + second

class Number(object):
    def __init__(self, value=2048): self.value = value
"""


def train_merges(text: str, n: int) -> list[tuple[bytes, bytes]]:
    """The first `n` merges of byte-level BPE: each time the most frequent pair."""
    words = [[bytes([c]) for c in word] for word in text.replace(" ", "\0 ").encode().split(b"\0")]
    merges = []
    for _ in range(n):
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = [apply_merge(word, best) for word in words]
    return merges


def apply_merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged, rest = [], word
    while rest:
        n = 2 if tuple(rest[:2]) == pair else 1
        merged.append(b"".join(rest[:n]))
        rest = rest[n:]
    return merged


@dataclass
class TinyModel:
    """A GPTBigCode model as plain arrays, under canonical names."""

    merges: list[tuple[bytes, bytes]]
    tokens: list[bytes]  # without padding
    weights: dict[str, np.ndarray]
    n_vocab: int = 320
    n_ctx: int = 16
    dim: int = 32
    hidden_dim: int = 128
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 1
    specials: tuple[str, ...] = SPECIALS
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


def make_tiny(seed: int = 0, n_kv_heads: int = 1, tied: bool = True) -> TinyModel:
    """A model of 2 layers, 32 dimensions and 320 ids, 11 of them padding."""
    merges = train_merges(TEXT, 48)
    tokens = [name.encode() for name in SPECIALS] + [bytes([i]) for i in range(256)]
    tokens += [left + right for left, right in merges]
    model = TinyModel(merges, tokens, {}, n_kv_heads=n_kv_heads)
    rng, dim = np.random.default_rng(seed), model.dim

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.08).astype(np.float32)

    n_qkv = dim + 2 * n_kv_heads * model.head_dim
    shapes = {"attn_qkv": (n_qkv, dim), "attn_output": (dim, dim)}
    shapes |= {"ffn_up": (model.hidden_dim, dim), "ffn_down": (dim, model.hidden_dim)}
    weights = {"token_embd.weight": normal(model.n_vocab, dim)}
    weights["position_embd.weight"] = normal(model.n_ctx, dim)
    norms = ["output_norm"]
    for i in range(model.n_layers):
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
        for name, shape in shapes.items():
            weights[f"blk.{i}.{name}.weight"] = normal(*shape)
            weights[f"blk.{i}.{name}.bias"] = normal(shape[0])
    for norm in norms:
        weights |= {f"{norm}.weight": 1 + normal(dim), f"{norm}.bias": normal(dim)}
    if not tied:
        weights["output.weight"] = normal(model.n_vocab, dim)
    model.weights = weights
    return model


def _alphabet() -> list[str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte if byte in kept else next(rest)) for byte in range(256)]


ALPHABET = _alphabet()


def printable(raw: bytes) -> str:
    """Bytes as GPT-2 writes them in vocabularies."""
    return "".join(ALPHABET[byte] for byte in raw)
