"""Train: rows of tokens in, weights and a log of the loss out, on a GPU or on a CPU.

A run is a function of its `Plan` and its rows. Products are bf16, weights and what the optimizer
moves are f32. In the last part of a run the layers' matrices are multiplied as q4_0 rounds them
(`grid`), so that the model learns to live with it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.model import GPTBigCode
from training.optimizer import Optimizer, share_of_rate
from training.shape import TINY, Shape

LOG_EVERY = 10
EVALUATIONS = 10  # of the development split, in a run


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of.

    Attributes:
        shape: The model's sizes.
        updates: How often the weights are moved.
        rows: Rows in one update.
        micro_rows: Rows in one pass through the model; 64 take 26 GB.
        warmup: Updates during which the learning rate rises.
        flat: Share of the run before the learning rate falls.
        rounded: Share of the run, at its end, with matrices on q4_0's grid.
        matrix_lr: Highest learning rate of the matrices (Muon).
        other_lr: Highest learning rate of everything else (AdamW).
        seed: Of the first weights and of the order of the rows.
    """

    shape: Shape = field(default_factory=Shape)
    updates: int = 2394
    rows: int = 128
    micro_rows: int = 64 if torch.cuda.is_available() else 4
    warmup: int = 100
    flat: float = 0.4
    rounded: float = 0.1
    matrix_lr: float = 6e-3
    other_lr: float = 3e-3
    seed: int = 1


TOY = Plan(TINY, updates=60, rows=8, warmup=5)


def train(
    plan: Plan, epochs: Sequence[Path], dev_rows: np.ndarray, bytes_per_token: float, out: Path
) -> None:
    """Train a model; write `out`, a checkpoint, and beside it a log of its name.

    Args:
        plan: What to train.
        epochs: The rows of each epoch, (n, n_positions + 1) tokens; the last is read to the end.
        dev_rows: Rows of the development split.
        bytes_per_token: There, to log bits per byte.
        out: The file to write.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(plan.seed)
    torch.set_flush_denormal(True)  # arithmetic on numbers near 0 is slow, and teaches nothing
    model = GPTBigCode(plan.shape).to(device)
    model.compile(dynamic=False)
    optimizer = Optimizer(model, plan.matrix_lr, plan.other_lr)
    log_path, began = out.with_suffix(".jsonl"), time.monotonic()
    log(
        log_path,
        device=torch.cuda.get_device_name() if device == "cuda" else "CPU",
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        plan=asdict(plan),
    )
    rows = batches(plan, epochs)
    for update in range(1, plan.updates + 1):
        progress = (update - 1) / plan.updates
        model.set_rounded(progress >= 1 - plan.rounded)
        loss = learn(model, _tensor(next(rows), device), plan.micro_rows)
        optimizer.step(share_of_rate(progress, update - 1, plan.warmup, plan.flat))
        figures: dict[str, object] = {}
        if update % LOG_EVERY == 0 or update == plan.updates:
            figures["loss"] = round(float(loss), 4)
        if update % math.ceil(plan.updates / EVALUATIONS) == 0 or update == plan.updates:
            nats = evaluate(model, _tensor(dev_rows, device), plan.micro_rows)
            figures["dev_bpb"] = round(nats / math.log(2) / bytes_per_token, 4)
        if figures:
            tokens = update * plan.rows * plan.shape.n_positions
            seconds = round(time.monotonic() - began, 1)
            log(log_path, update=update, tokens=tokens, seconds=seconds, **figures)
    save(out, {"shape": asdict(plan.shape), "model": model.state_dict()})


def batches(plan: Plan, epochs: Sequence[Path]) -> Iterator[np.ndarray]:
    """(rows, n_positions + 1) tokens for each update, each epoch's in an order of its own.

    Raises:
        ValueError: all epochs together have too few rows.
    """
    for epoch, path in enumerate(epochs):
        rows = np.load(path, mmap_mode="r")
        order = np.random.default_rng([plan.seed, epoch]).permutation(len(rows))
        for at in range(0, len(rows) - plan.rows + 1, plan.rows):
            yield rows[order[at : at + plan.rows]]
    raise ValueError(
        f"{len(epochs)} epochs have too few rows for {plan.updates} updates of {plan.rows}: "
        "draw more of them, or take fewer updates"
    )


def learn(model: GPTBigCode, rows: Tensor, micro_rows: int) -> Tensor:
    """Add the gradients of the mean loss of rows; return that loss."""
    total = torch.zeros((), device=rows.device)
    for some in rows.split(micro_rows):
        with torch.autocast(rows.device.type, torch.bfloat16):
            loss = model.loss(some) * (len(some) / len(rows))
        loss.backward()
        total += loss.detach()
    return total


def evaluate(model: GPTBigCode, rows: Tensor, micro_rows: int) -> float:
    """The mean loss of rows, in nats a token."""
    with torch.no_grad(), torch.autocast(rows.device.type, torch.bfloat16):
        losses = [float(model.loss(some)) * len(some) for some in rows.split(micro_rows)]
    return sum(losses) / len(rows)


def _tensor(rows: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(rows.astype(np.int64)).to(device)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside, flush it, and put it in its place."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def log(path: Path, **figures: object) -> None:
    """Add a line of JSON to a log, and print it."""
    line = json.dumps(figures)
    with path.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)
