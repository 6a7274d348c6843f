"""The sizes of the model, without PyTorch: whoever only asks for them need not have it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model.

    What two hours of two cores can teach is the limit, so it is the smallest of five million
    parameters and more. Widths are multiples of 256, which every quantized type takes.
    """

    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 4
    n_inner: int = 1024
    n_positions: int = 1024
    vocab_size: int = 4096
