"""A model of a few kilobytes, as plain arrays under canonical names, of any architecture.

What the formats make of it on disk is in `gguf`, `legacy` and `hf`, beside this file.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from starcoder.model.architecture import Architecture, Role, TensorSpec
from starcoder.model.gpt_bigcode import GPT_BIGCODE

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
    """A model as plain arrays, under canonical names; its numbers have ModelConfig's names."""

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
    norm_eps: float = 1e-5
    specials: tuple[str, ...] = SPECIALS
    extra: dict[str, Any] = field(default_factory=dict)
    architecture: Architecture = GPT_BIGCODE

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def qkv_dim(self) -> int:
        return self.dim + 2 * self.kv_dim

    def spec(self, name: str) -> TensorSpec:
        """What is declared of the tensor with this canonical name."""
        return self.architecture.specs(_MAX_LAYERS)[name]


_MAX_LAYERS = 8  # of any model in the tests


def make_tiny(
    seed: int = 0,
    n_kv_heads: int = 1,
    tied: bool = True,
    architecture: Architecture = GPT_BIGCODE,
) -> TinyModel:
    """A model of 2 layers, 32 dimensions and 320 ids, 11 of them padding."""
    merges = train_merges(TEXT, 48)
    tokens = [name.encode() for name in SPECIALS] + [bytes([i]) for i in range(256)]
    tokens += [left + right for left, right in merges]
    model = TinyModel(merges, tokens, {}, n_kv_heads=n_kv_heads, architecture=architecture)
    rng = np.random.default_rng(seed)
    for name, spec in architecture.specs(model.n_layers).items():
        shape = [getattr(model, axis) for axis in spec.axes]
        floats = (rng.standard_normal(shape) * 0.08).astype(np.float32)
        if spec.role is not Role.OUTPUT or not tied:
            model.weights[name] = 1 + floats if spec.role is Role.NORM else floats
    return model


def _alphabet() -> list[str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte if byte in kept else next(rest)) for byte in range(256)]


ALPHABET = _alphabet()


def printable(raw: bytes) -> str:
    """Bytes as GPT-2 writes them in vocabularies."""
    return "".join(ALPHABET[byte] for byte in raw)
