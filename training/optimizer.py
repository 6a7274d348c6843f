"""What moves the weights: Muon for the blocks' matrices, AdamW for all else; and the schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from training.model import GPTBigCode


class Optimizer:
    """Both together; every parameter is in exactly one of them.

    Args:
        model: Whose weights are moved.
        matrix_lr: Highest learning rate of the layers' matrices.
        other_lr: Highest learning rate of everything else.
    """

    def __init__(self, model: GPTBigCode, matrix_lr: float, other_lr: float) -> None:
        self._parameters = list(model.parameters())
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
        embeddings = [
            p for name, p in model.named_parameters() if p.ndim == 2 and ".h." not in name
        ]
        vectors = [p for p in self._parameters if p.ndim < 2]
        muon = torch.optim.Muon(
            matrices, lr=matrix_lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(
            [
                {"params": embeddings, "weight_decay": 0.01},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=other_lr,
            betas=(0.9, 0.95),
            fused=True,
        )
        self._peaks: list[tuple[torch.optim.Optimizer, float]] = [
            (muon, matrix_lr),
            (adamw, other_lr),
        ]

    def step(self, share: float) -> None:
        """Move the weights by their clipped gradients, at a share of the highest rates."""
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, peak in self._peaks:
            for group in optimizer.param_groups:
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        """What the next step depends on, beside the weights."""
        return [optimizer.state_dict() for optimizer, _ in self._peaks]

    def load(self, state: list[dict[str, Any]]) -> None:
        """Go on from what `state` returned."""
        for (optimizer, _), saved in zip(self._peaks, state, strict=True):
            optimizer.load_state_dict(saved)


def phase_at(steps: Sequence[int], step: int) -> tuple[int, int]:
    """Which of some phases, of so many steps each, a step belongs to; and how many were before."""
    for i, n in enumerate(steps):
        if step < n:
            return i, step
        step -= n
    raise IndexError("there is no such step")


def schedule(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step: linear up, then a cosine down to a fiftieth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
