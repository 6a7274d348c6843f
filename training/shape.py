"""The sizes of the model, without PyTorch: whoever only asks for them need not have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model.

    Of two shapes trained for 60 steps each, this one reached 2.285 bits per byte of the development
    split, and 8 layers of 256 with 2 heads 2.307. The whole file must fit into 8 MB as Q8_0.
    """

    n_embd: int = 288
    n_layer: int = 6
    n_head: int = 3
    n_inner: int = 1152
    n_positions: int = 1024
    vocab_size: int = 4096
