"""What moves the weights: Muon for the blocks' matrices, AdamW for all else; and the schedule."""

from __future__ import annotations

import math

import torch

from training.model import GPTBigCode


def make_optimizers(
    model: GPTBigCode, matrix_lr: float, other_lr: float
) -> list[torch.optim.Optimizer]:
    """One optimizer for each kind of parameter; every parameter is in exactly one of them."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    embeddings = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." not in name]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        torch.optim.Muon(
            matrices, lr=matrix_lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [
                {"params": embeddings, "weight_decay": 0.01},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=other_lr,
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def schedule(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at a step: linear up, then a cosine down to a fiftieth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
