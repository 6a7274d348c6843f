"""Train: rows of tokens in, checkpoints and a log of the loss out.

A run is a function of its `Plan`: the seed gives the first weights and the order of the rows, and a
checkpoint has all that the next step depends on. Killed at any moment, it goes on from its last
checkpoint; asked to end (SIGTERM, Ctrl-C) it writes one first. Arithmetic is f32, or bf16 where
PyTorch's autocast says so: which is faster is a question to the machine (docs/log.md).

Half of the run sees short rows, which cost a sixth less, for what attention costs. The other half,
where the learning rate falls, has the whole context.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.model import GPTBigCode
from training.optimizer import Optimizer, phase_at, schedule
from training.shape import Shape

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run, in which all rows have one length.

    Attributes:
        context: Tokens in a row.
        steps: Updates of the weights.
        rows: Rows in one update.
        micro_rows: Rows in one pass through the model.
    """

    context: int
    steps: int
    rows: int
    micro_rows: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of.

    Attributes:
        shape: The model's sizes.
        phases: What it sees, in order; the last phase has the model's whole context.
        warmup: Updates during which the learning rate rises.
        matrix_lr: Highest learning rate of the matrices (Muon).
        other_lr: Highest learning rate of everything else (AdamW).
        seed: Of the first weights.
        bf16: Whether products are bf16; weights and residual stream are f32 in any case.
    """

    shape: Shape = field(default_factory=Shape)
    phases: tuple[Phase, ...] = (Phase(256, 300, 64, 16), Phase(1024, 1000, 16, 4))
    warmup: int = 100
    matrix_lr: float = 6e-3
    other_lr: float = 3e-3
    seed: int = 1
    bf16: bool = True

    @property
    def steps(self) -> int:
        """Updates of the weights in the whole run."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[int, int]:
        """The phase that a step belongs to, and how many steps of it were before."""
        return phase_at([phase.steps for phase in self.phases], step)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside, flush it, and put it in the old one's place."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def log(path: Path, figures: dict[str, float]) -> None:
    """Add a line of JSON to a log, and print it."""
    line = json.dumps(figures)
    with path.open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def backward_rows(model: GPTBigCode, rows: np.ndarray) -> float:
    """Add the gradients of the mean loss over rows of source (n, tokens + 1); return that loss."""
    total = 0.0
    for some in torch.from_numpy(rows.astype(np.int64)).split(4):
        positions = torch.arange(some.shape[1] - 1).expand(len(some), -1)
        loss = model.loss(some[:, :-1], some[:, 1:], positions) * (len(some) / len(rows))
        loss.backward()
        total += loss.item()
    return total


class Trainer:
    """One run, in a folder of its own.

    Args:
        plan: What to train.
        folder: Where `checkpoint.pt` and `log.jsonl` are.
        train_rows: For each phase (n, context + 1) tokens, used in order.
        dev_rows: (n, n_positions + 1) tokens, for the loss logged beside the training loss.
        bytes_per_token: Of the dev split, to log bits per byte.
    """

    CHECKPOINT_EVERY = 100
    EVALUATE_EVERY = 200

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        train_rows: Sequence[np.ndarray],
        dev_rows: np.ndarray,
        bytes_per_token: float,
    ) -> None:
        for phase, rows in zip(plan.phases, train_rows, strict=True):
            needed = phase.steps * phase.rows, phase.context + 1
            if len(rows) < needed[0] or rows.shape[1] != needed[1]:
                raise ValueError(
                    f"the corpus gives rows of shape {rows.shape}, {phase.steps} steps of "
                    f"{phase.rows} need {needed}: take fewer steps, or add packages"
                )
        self.plan, self.folder = plan, folder
        self.train_rows, self.dev_rows, self.bytes_per_token = train_rows, dev_rows, bytes_per_token
        torch.manual_seed(plan.seed)
        torch.set_flush_denormal(True)  # arithmetic on numbers near 0 is slow, and teaches nothing
        self.model = GPTBigCode(plan.shape)
        self.optimizer = Optimizer(self.model, plan.matrix_lr, plan.other_lr)
        self.step = 0
        self.seconds = 0.0
        self.asked_to_end = False
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    def run(self) -> bool:
        """Train to the end, or until asked to end; return whether the end was reached."""
        before = {s: signal.signal(s, self._ask) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._run()
        finally:  # what comes after ends when it is asked to
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _run(self) -> bool:
        loss_of = torch.compile(self.model.loss, dynamic=False)  # a graph for every length
        while self.step < self.plan.steps and not self.asked_to_end:
            started = time.monotonic()
            loss = self._update(loss_of)
            self.step += 1
            self.seconds += time.monotonic() - started
            if self.step % 10 == 0 or self.step == self.plan.steps:
                self._log(loss=round(loss, 4), seconds=round(self.seconds, 1))
            if self.step % self.EVALUATE_EVERY == 0 or self.step == self.plan.steps:
                dev = self.evaluate(loss_of)
                self._log(
                    dev_loss=round(dev, 4), dev_bpb=round(dev / np.log(2) / self.bytes_per_token, 4)
                )
            if self.step % self.CHECKPOINT_EVERY == 0 or self.step == self.plan.steps:
                self._save()
        if self.asked_to_end:
            self._save()
        return self.step == self.plan.steps

    def evaluate(self, loss_of: Loss) -> float:
        """Mean loss over the dev rows, in nats a token."""
        losses = []
        with torch.no_grad(), self._precision():
            size = self.plan.phases[-1].micro_rows
            for at in range(0, len(self.dev_rows) - size + 1, size):
                losses.append(loss_of(*self._tensors(self.dev_rows[at : at + size])).item())
        return float(np.mean(losses))

    def _update(self, loss_of: Loss) -> float:
        plan = self.plan
        which, before = plan.at(self.step)
        phase = plan.phases[which]
        rows = self.train_rows[which][before * phase.rows : (before + 1) * phase.rows]
        total = 0.0
        for at in range(0, phase.rows, phase.micro_rows):
            with self._precision():
                loss = loss_of(*self._tensors(rows[at : at + phase.micro_rows]))
            (loss * (phase.micro_rows / phase.rows)).backward()
            total += loss.item() * phase.micro_rows / phase.rows
        self.optimizer.step(schedule(self.step, plan.steps, plan.warmup))
        return total

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.plan.bf16)

    def _log(self, **figures: float) -> None:
        log(self.folder / "log.jsonl", {"step": self.step, **figures})

    def _save(self) -> None:
        state = {
            "plan": asdict(self.plan),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": self.optimizer.state(),
        }
        save(self.folder / "checkpoint.pt", state)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["plan"] != asdict(self.plan):
            raise ValueError(
                f"{path} belongs to another plan ({state['plan']}): "
                "go on with that plan, or choose another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizers"])
        self.step, self.seconds = state["step"], state["seconds"]
        print(f"going on from step {self.step}", flush=True)

    def _ask(self, *_: object) -> None:
        self.asked_to_end = True

    def _tensors(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, targets and positions, (rows, tokens) each.

        Short rows lie at every part of the context in turn, so that all positions are learned.
        """
        ids = torch.from_numpy(rows.astype(np.int64))
        n_rows, length = rows.shape[0], rows.shape[1] - 1
        parts = self.plan.shape.n_positions // length
        starts = torch.arange(n_rows) % parts * length
        return ids[:, :-1], ids[:, 1:], starts[:, None] + torch.arange(length)
