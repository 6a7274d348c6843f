"""Fill: teach the trained model to fill a gap when the suffix lies between prefix and middle.

With the suffix first, the middle goes on where the prompt ends, and training alone teaches that.
With the prefix first, the model has to go back to where <fim_suffix> stands; from gaps of all
lengths it learned to go on with the suffix instead (docs/log.md). So here gaps begin short, a few
tokens of prefix and one or two of suffix, and grow; in a second phase half of them have all that
fits the context, as what editors send of any longer file. The model is its own teacher: what it
says of a middle with the suffix first is, beside the source, what it should say with the prefix
first. Rows of source keep it where it was otherwise.

A run is a function of its `Course`; it goes on from its last checkpoint.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from training import dataset
from training.corpus import File
from training.model import GPTBigCode
from training.optimizer import Optimizer, phase_at, schedule
from training.shape import Shape
from training.train import backward_rows, log, save

MIDDLE_TOKENS = 64  # with the end; longer ones are not asked for
CHECKPOINT_EVERY = 50
LOG_EVERY = 10


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a course; the learning rate rises and falls in each.

    Attributes:
        steps: Updates of the weights.
        gaps: In one update.
        rows: Rows of source in one update.
        prefix_tokens: The longest prefix at the beginning, and from `grown` on.
        suffix_tokens: The same of the suffix.
        grown: Share of the updates in which they grow.
        full: Share of the gaps that have the longest; half of the others have under a quarter.
        first_weights: Of a middle's first tokens in the loss; all others have 1.
        rate: Share of the course's learning rates that is reached.
    """

    steps: int
    gaps: int
    rows: int
    prefix_tokens: tuple[int, int]
    suffix_tokens: tuple[int, int]
    grown: float
    full: float
    first_weights: tuple[float, ...]
    rate: float


@dataclass(frozen=True, slots=True)
class Course:
    """How filling is taught.

    Attributes:
        phases: One after the other.
        parts: Passes through the model in one update, shortest gaps with shortest.
        own: Weight of what the model says with the suffix first; the rest has the source.
        warmup: Updates during which the learning rate rises.
        matrix_lr: Highest learning rate of the matrices (Muon).
        other_lr: Highest learning rate of everything else (AdamW).
        seed: Of the gaps.
        bf16: Whether products are bf16.
    """

    phases: tuple[Phase, ...] = (
        Phase(500, 32, 4, (24, 600), (2, 300), 0.6, 0.0, (4.0, 3.0, 2.0), 1.0),
        Phase(250, 24, 2, (400, 600), (200, 300), 0.2, 0.5, (8.0, 6.0, 3.0), 1.0),
        Phase(150, 24, 6, (600, 600), (300, 300), 1.0, 0.75, (8.0, 6.0, 3.0), 0.6),
    )
    parts: int = 4
    own: float = 0.5
    warmup: int = 20
    matrix_lr: float = 2e-3
    other_lr: float = 1e-3
    seed: int = 5
    bf16: bool = True

    @property
    def steps(self) -> int:
        """Updates of the weights in all phases."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """The phase that a step belongs to, and how many steps of it were before."""
        i, before = phase_at([phase.steps for phase in self.phases], step)
        return self.phases[i], before


@dataclass(frozen=True, slots=True)
class Gap:
    """A gap and what is around it, tokenized apart; the middle ends with <|endoftext|>."""

    prefix: list[int]
    suffix: list[int]
    middle: list[int]


def fill(
    course: Course, work: Path, files: Sequence[File], rows: np.ndarray, tokenizer: Tokenizer
) -> Path:
    """Teach the model of `work/run/checkpoint.pt`; return the path of the new checkpoint.

    Args:
        course: What to do.
        work: The work folder; `work/run/filled.pt` is where it goes on.
        files: Of the training split.
        rows: (n, context + 1) tokens that training did not reach.
        tokenizer: Of the model.

    Raises:
        ValueError: `filled.pt` belongs to another course.
    """
    folder = work / "run"
    path = folder / "filled.pt"
    trained = torch.load(folder / "checkpoint.pt", weights_only=True)
    state = torch.load(path, weights_only=True) if path.exists() else {**trained, "filled": 0}
    if state.setdefault("course", asdict(course)) != asdict(course):
        raise ValueError(
            f"{path} belongs to another course ({state['course']}): "
            "go on with that one, or move the file away"
        )
    teacher, model = (GPTBigCode(Shape(**trained["plan"]["shape"])) for _ in range(2))
    teacher.load_state_dict(trained["model"])
    model.load_state_dict(state["model"])
    optimizer = Optimizer(model, course.matrix_lr, course.other_lr)
    if path.exists():
        optimizer.load(state["optimizers"])
    torch.set_flush_denormal(True)
    started, sums = time.monotonic(), dict.fromkeys(("source", "middles", "first"), 0.0)
    read = sum(course.at(step)[0].rows for step in range(state["filled"]))
    for step in range(state["filled"], course.steps):
        phase, before = course.at(step)
        gaps = list(_gaps(course, step, files, tokenizer))
        some = np.take(rows, range(read, read + phase.rows), 0, mode="wrap")
        read += phase.rows
        with torch.autocast("cpu", torch.bfloat16, enabled=course.bf16):
            losses = _backward(course, phase, model, teacher, gaps, some, tokenizer)
        optimizer.step(phase.rate * schedule(before, phase.steps, course.warmup))
        sums = {name: sums[name] + losses[name] for name in sums}
        if (step + 1) % LOG_EVERY == 0:
            means = {name: round(value / LOG_EVERY, 4) for name, value in sums.items()}
            log(folder / "fill.jsonl", {"step": step + 1, **means})
            sums = dict.fromkeys(sums, 0.0)
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == course.steps:
            state["seconds"] += time.monotonic() - started
            started = time.monotonic()
            state["model"], state["filled"] = model.state_dict(), step + 1
            state["optimizers"] = optimizer.state()
            save(path, state)
    return path


def longest(phase: Phase, step: int) -> tuple[int, int]:
    """The longest prefix and suffix of an update, in tokens: they grow by the same share."""
    grown = min(1.0, step / (phase.grown * phase.steps))
    first, last = zip(phase.prefix_tokens, phase.suffix_tokens, strict=True)
    prefix, suffix = (round(a * (b / a) ** grown) for a, b in zip(first, last, strict=True))
    return prefix, suffix


def _gaps(course: Course, step: int, files: Sequence[File], tokenizer: Tokenizer) -> Iterator[Gap]:
    """The gaps of one update; each is from another file, most likely."""
    rng = random.Random(course.seed * 1_000_000 + step)
    phase, before = course.at(step)
    prefix, suffix = longest(phase, before)
    made = 0
    while made < phase.gaps:
        text = rng.choice(files).text
        if phase.full and rng.random() < phase.full:
            gap = cut(tokenizer, text, rng, prefix, suffix)
        else:
            around = 1 + int(prefix * rng.random() ** 2), 1 + int(suffix * rng.random() ** 2)
            gap = cut(tokenizer, text, rng, *around)
        if gap.prefix and len(gap.middle) <= MIDDLE_TOKENS:
            made += 1
            yield gap


def cut(tokenizer: Tokenizer, text: str, rng: random.Random, prefix: int, suffix: int) -> Gap:
    """A gap as editors ask for, with at most so many tokens before it and after it."""
    a, b = dataset.lines(text, rng)
    ids = (
        tokenizer.encode(part, add_special_tokens=False).ids
        for part in (text[max(0, a - 8 * prefix) : a], text[b : b + 8 * suffix], text[a:b])
    )
    before, after, middle = ids
    end = dataset.token_id(tokenizer, "<|endoftext|>")
    return Gap(before[-prefix:], after[:suffix], [*middle, end])


def _backward(
    course: Course,
    phase: Phase,
    model: GPTBigCode,
    teacher: GPTBigCode,
    gaps: Sequence[Gap],
    rows: np.ndarray,
    tokenizer: Tokenizer,
) -> dict[str, float]:
    """Add the gradients of one update; return the mean losses, in nats a token.

    "first" is the loss on the first token of the middles, which says whether the model goes back.
    """
    gaps = sorted(gaps, key=lambda gap: len(gap.prefix) + len(gap.suffix) + len(gap.middle))
    size = -(-len(gaps) // course.parts)
    total = sum(float(_weights(phase, len(gap.middle)).sum()) for gap in gaps)
    sums = {"source": backward_rows(model, rows), "middles": 0.0, "first": 0.0}
    for at in range(0, len(gaps), size):
        part = gaps[at : at + size]
        with torch.no_grad():
            said = _log_p(teacher, part, tokenizer, suffix_first=True)
        log_p = _log_p(model, part, tokenizer, suffix_first=False)
        targets = torch.tensor([token for gap in part for token in gap.middle])
        weights = torch.cat([_weights(phase, len(gap.middle)) for gap in part])
        source = functional.nll_loss(log_p, targets, reduction="none")
        own = functional.kl_div(log_p, said, reduction="none", log_target=True).sum(-1)
        loss = (weights * ((1 - course.own) * source + course.own * own)).sum() / total
        loss.backward()
        firsts = np.cumsum([0, *(len(gap.middle) for gap in part[:-1])])
        sums["middles"] += (weights * source).sum().item() / total
        sums["first"] += source[firsts].sum().item() / len(gaps)
    return sums


def _weights(phase: Phase, n: int) -> torch.Tensor:
    """Of the tokens of a middle: (n,)."""
    weights = torch.ones(n)
    weights[: len(phase.first_weights)] = torch.tensor(phase.first_weights[:n])
    return weights


def _log_p(
    model: GPTBigCode, gaps: Sequence[Gap], tokenizer: Tokenizer, suffix_first: bool
) -> torch.Tensor:
    """What the model says at all tokens of the middles: (tokens, vocabulary), in nats."""
    prompts = [dataset.fim_tokens(tokenizer, gap.prefix, gap.suffix, suffix_first) for gap in gaps]
    length = max(len(prompt) + len(gap.middle) for prompt, gap in zip(prompts, gaps, strict=True))
    ids = torch.zeros(len(gaps), length, dtype=torch.int64)
    said = torch.zeros(len(gaps), length - 1, dtype=torch.bool)
    for i, (prompt, gap) in enumerate(zip(prompts, gaps, strict=True)):
        n = len(prompt) + len(gap.middle)
        ids[i, :n] = torch.tensor(prompt + gap.middle)
        said[i, len(prompt) - 1 : n - 1] = True
    positions = torch.arange(length - 1).expand(len(gaps), -1)
    hidden = model(ids[:, :-1], positions)[said]
    logits = functional.linear(hidden, model.transformer["wte"].weight)
    return functional.log_softmax(logits.float(), dim=-1)
