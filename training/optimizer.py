"""What moves the weights: Muon for the layers' matrices, AdamW for all else; and the schedule."""

from __future__ import annotations

import torch

from training import grid
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
        matrices = [p for name, p in model.named_parameters() if grid.is_on_grid(name, p)]
        embeddings = [model.transformer[name].weight for name in ("wte", "wpe")]
        vectors = [p for p in self._parameters if p.ndim < 2]
        muon = torch.optim.Muon(
            matrices, lr=matrix_lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        decays = [{"params": embeddings, "weight_decay": 0.01}, {"params": vectors}]
        adamw = torch.optim.AdamW(
            decays, lr=other_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True
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
            optimizer.zero_grad()


def share_of_rate(progress: float, update: int, warmup: int, flat: float) -> float:
    """Of the highest learning rate: up over some updates, constant, then linearly down to zero."""
    return min(1.0, (update + 1) / warmup, max(0.0, (1 - progress) / (1 - flat)))
