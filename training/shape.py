"""The sizes of the model, without PyTorch: whoever only asks for them need not have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model; widths are multiples of 256, which every quantized type takes."""

    n_embd: int = 512
    n_layer: int = 12
    n_head: int = 8
    n_inner: int = 2048
    n_positions: int = 2048
    vocab_size: int = 8192


TINY = Shape(n_embd=256, n_layer=2, n_head=4, n_inner=512, n_positions=256, vocab_size=512)
