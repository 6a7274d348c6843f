"""The grid of q4_0: what a matrix becomes when it is quantized, while it is still being trained.

q4_0 writes 32 weights as one f16 scale and 32 codes of four bits. A model that was trained to be
multiplied with such matrices loses nothing when it is quantized. The gradient of a rounded weight
goes straight through to the weight that it was rounded from (Bengio et al. 2013).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32


def is_on_grid(name: str, tensor: Tensor) -> bool:
    """Whether the tensor of this name is one of the layers' matrices, which q4_0 rounds."""
    return tensor.ndim == 2 and ".h." in name


def q4_0(weights: Tensor) -> Tensor:
    """Round as ggml does, bit for bit: the scale maps the largest of a block onto -8."""
    blocks = weights.reshape(-1, BLOCK)
    largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    codes = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return (codes * scale.half().float()).view_as(weights)


def straight_through(weights: Tensor) -> Tensor:
    """The rounded weights, with the gradient of the weights themselves."""
    return weights + (q4_0(weights.detach()) - weights).detach()
