"""Mend the trained model on a CPU: gaps with the prefix first, prompts that end with Enter, ends.

Training teaches a gap behind its suffix; with the prefix first the model goes on with the suffix.
It has to learn to look back over it: half of what a gap teaches is the source's, half what the
trained model says of the same tokens where it reads the text without a gap (`trees`). It also
learns from its own text (`lessons`). Of other source it learns what the trained model says of it,
which keeps it where it was. Matrices are multiplied as q4_0 rounds them all the while.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from starcoder import LLM
from training import corpus, documents, grid, lessons, measure, tokenizer
from training.export import export
from training.model import GPTBigCode
from training.optimizer import share_of_rate
from training.shape import Shape
from training.train import log, save
from training.trees import Grower, Row

KINDS = {"text": 0.7, "middle": 1.0, "enter": 1.0, "good": 0.7, "loop": 0.4}  # and their weights
N_FILES, N_TEXTS = 7000, 512  # of the training split: read; and functions of it, written anew
LOG_EVERY = 10


@dataclass(frozen=True, slots=True)
class Course:
    """A part of the mending.

    Attributes:
        updates: Of the weights.
        rows: Kinds of rows, `Grower`'s methods, again and again.
        batch: Rows in an update.
        size: Tokens of a row, at most; files have twice as many.
        prefix: Tokens before a gap, at most.
        suffix: Tokens behind it, at most: at first, and in the end.
        full: Share of gaps that are as long as may be.
        own: Share of what a gap teaches that is the trained model's.
        matrix_lr: Highest learning rate of the layers' matrices (AdamW).
        other_lr: Highest learning rate of everything else.
        warmup: Updates during which it rises.
        flat: Share of the course before it falls.
    """

    updates: int
    rows: tuple[str, ...]
    batch: int = 5
    size: int = 1024
    prefix: int = 600
    suffix: tuple[int, int] = (150, 300)
    full: float = 0.15
    own: float = 0.5
    matrix_lr: float = 3e-4
    other_lr: float = 2e-5
    warmup: int = 5
    flat: float = 0.4


COURSES = (
    Course(
        40,
        ("files", *3 * ("gaps",), "behind_suffix", "files", *3 * ("gaps",), "text"),
        flat=0.9,
    ),
    Course(50, ("files", "gaps", "text", "own_text", "files", "gaps", "text", "behind_suffix"), 4),
)
TOY = (
    Course(3, ("gaps", "text", "behind_suffix"), size=128, prefix=48, suffix=(8, 24)),
    Course(3, ("files", "own_text"), 2, size=128),
)


def mend(courses: Sequence[Course], work: Path, checkpoint: Path, out: Path) -> None:
    """Mend a model; write `out`, a checkpoint, and beside it a log of its name."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = GPTBigCode(Shape(**state["shape"]))
    model.load_state_dict(state["model"])
    model.set_rounded(True)
    teacher, rng = copy.deepcopy(model), random.Random(1)
    torch.set_flush_denormal(True)
    files = corpus.read_split(work, "train")
    files = rng.sample(files, min(N_FILES, len(files)))
    functions = measure.functions(files[:1000])
    grower = make_grower(files, tokenizer.load(work / "tokenizer.json"), rng)
    done, began = 0, time.monotonic()
    for course in courses:
        if "own_text" in course.rows:
            asked = rng.sample(functions, min(N_TEXTS, len(functions)))
            grower.lessons = lessons.write(_exported(model, state, work, out), asked)
        optimizer = _optimizer(model, course)
        peaks = [group["lr"] for group in optimizer.param_groups]
        kinds = cycle(course.rows)
        for update in range(course.updates):
            progress = update / course.updates
            rows = draw(grower, course, list(islice(kinds, course.batch)), progress)
            figures = learn(model, teacher, rows, course.own)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            share = share_of_rate(progress, update, course.warmup, course.flat)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * share
            optimizer.step()
            optimizer.zero_grad()
            if (update + 1) % LOG_EVERY == 0 or update + 1 == course.updates:
                seconds = round(time.monotonic() - began, 1)
                log(out.with_suffix(".jsonl"), update=done + update + 1, seconds=seconds, **figures)
        done += course.updates
    save(out, {**state, "model": model.state_dict()})


def _optimizer(model: GPTBigCode, course: Course) -> torch.optim.AdamW:
    named = [(grid.is_on_grid(name, p), p) for name, p in model.named_parameters()]
    groups = [
        {"params": [p for on_grid, p in named if on_grid], "lr": course.matrix_lr},
        {"params": [p for on_grid, p in named if not on_grid], "lr": course.other_lr},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


def _exported(model: GPTBigCode, state: dict[str, object], work: Path, out: Path) -> LLM:
    """The model as it is now, through starcoder."""
    now, path = out.with_suffix(".now"), work / "starcoder-pocket-q4_0.gguf"
    save(now, {**state, "model": model.state_dict()})
    export(now, work / "tokenizer.json", [path])
    return LLM(path)


def make_grower(files: Sequence[corpus.File], bpe: Tokenizer, rng: random.Random) -> Grower:
    """What makes rows of some files and of their functions."""
    texts = [text for text in documents.select(files, ()) if len(text.text) >= 300]
    functions = [f for kind, text in texts if kind != "test" for f, _ in documents.functions(text)]
    whole, short = (
        [np.array(ids) for ids in documents.encode(bpe, some)]
        for some in ([text.text for text in texts], functions)
    )
    return Grower(whole, short, bpe, rng)


def draw(grower: Grower, course: Course, kinds: Sequence[str], progress: float) -> list[Row]:
    """Rows of some kinds, `progress` of the course being over."""
    first, last = course.suffix
    grower.size = course.size
    suffix = round(first * (last / first) ** progress)
    return [
        grower.gaps(course.prefix, suffix, course.full)
        if kind == "gaps"
        else getattr(grower, kind)()
        for kind in kinds
    ]


def learn(
    model: GPTBigCode, teacher: GPTBigCode, rows: Sequence[Row], own: float
) -> dict[str, float]:
    """Add the gradients of some rows; return the mean loss of each kind."""
    weights = sum(target.weight * KINDS[target.kind] for row in rows for target in row.targets)
    losses: dict[str, list[float]] = {}
    for row in filter(lambda row: row.targets, rows):
        with torch.autocast("cpu", torch.bfloat16):
            loss = row_losses(model, teacher, row, own)
        factors = torch.tensor([target.weight * KINDS[target.kind] for target in row.targets])
        ((factors * loss).sum() / weights).backward()
        for target, value in zip(row.targets, loss.tolist(), strict=True):
            losses.setdefault(target.kind, []).append(value)
    return {kind: round(sum(some) / len(some), 4) for kind, some in losses.items()}


def row_losses(model: GPTBigCode, teacher: GPTBigCode, row: Row, own: float) -> Tensor:
    """The loss of each target, in nats; of what loops, -log(1 - p) where it is else -log p.

    Of what the teacher said too, a share is the divergence from that: all of it for plain text.
    """
    ids, positions = (torch.from_numpy(x[: row.n])[None] for x in (row.ids, row.positions))
    sees = torch.from_numpy(row.mask[: row.n, : row.n])[None, None]
    at, tokens, taught_at = (
        torch.tensor([getattr(target, name) for target in row.targets])
        for name in ("at", "token", "teacher")
    )
    log_p = model.logits(model(ids, positions, sees)[0, at]).log_softmax(-1)
    said = log_p.gather(1, tokens[:, None])[:, 0]
    loops, text = (torch.tensor([t.kind == kind for t in row.targets]) for kind in ("loop", "text"))
    loss = torch.where(loops, -torch.log1p(-said.exp().clamp(max=1 - 1e-4)), -said)
    taught_at = torch.where(text, at, taught_at)
    taught = taught_at >= 0
    with torch.no_grad():
        hidden = teacher(ids, positions, sees)[0, taught_at[taught]]
        theirs = teacher.logits(hidden).log_softmax(-1)
    divergence = functional.kl_div(log_p[taught], theirs, reduction="none", log_target=True)
    share = torch.where(text[taught], 1.0, own)
    mixed = (1 - share) * loss[taught] + share * divergence.sum(-1)
    return loss.masked_scatter(taught, mixed)
