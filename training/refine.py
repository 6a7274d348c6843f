"""Refine: teach the trained model from its own text, so that it neither loops nor runs on.

A small model that always takes the likeliest token soon repeats a line for ever. In rounds, the
exported model writes the bodies of functions of the training split, through starcoder itself: once
greedily, `N_SAMPLED` times at random. In what it wrote

- a token that completes a sequence of `NGRAM` for the third time is made less likely (unlikelihood
  on the model's own text, Welleck et al. 2019); of source, that is one token in 90;
- the body of a function that ends, parses and repeats nothing is made more likely, up to and with
  the token that ends it;
- a body that does not end is given one: after the last line before it repeats itself, or before
  there was no more room, a line break and <|endoftext|> are made more likely.

Rows of source keep the model where it was otherwise. A round that was interrupted is done again.
Nothing of what is held out is asked for.
"""

from __future__ import annotations

import ast
import bisect
import random
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from starcoder import LLM, Completion
from training import measure
from training.corpus import File
from training.export import export
from training.model import GPTBigCode
from training.optimizer import Optimizer
from training.shape import Shape
from training.train import backward_rows, log, save

NGRAM = 8
N_SAMPLED = 1
PROMPT_TOKENS, BODY_TOKENS = 384, 192


@dataclass(frozen=True, slots=True)
class Course:
    """How the model is refined.

    Attributes:
        rounds: How often it writes and learns.
        functions: Asked for in a round; half of them by their header alone.
        batch: Texts in one update of the weights.
        rows: Rows of source in one update.
        matrix_lr: Highest learning rate of the matrices (Muon).
        other_lr: Highest learning rate of everything else (AdamW).
        seed: Of the choice of functions, and of what is written at random.
        bf16: Whether products are bf16: 2 minutes a round of 512 functions, 3.5 in f32.
    """

    rounds: int = 4
    functions: int = 512
    batch: int = 32
    rows: int = 8
    matrix_lr: float = 6e-4
    other_lr: float = 3e-4
    seed: int = 3
    bf16: bool = True


@dataclass(frozen=True, slots=True)
class Lesson:
    """A text and what to learn from it.

    Attributes:
        ids: Prompt and body, (n,) tokens.
        signs: For each of `ids`: 1 make it likelier, -1 less likely, 0 leave it.
        kind: "good", "looping", or "end" for one that was given.
    """

    ids: list[int]
    signs: list[int]
    kind: str


def refine(course: Course, work: Path, files: Sequence[File], rows: np.ndarray) -> Path:
    """Refine the model of `work/run/filled.pt`; return the path of the new checkpoint.

    Args:
        course: What to do.
        work: The work folder; `work/run/refined.pt` is where it goes on.
        files: Of the training split.
        rows: (n, context + 1) tokens that training did not reach.
    """
    folder = work / "run"
    path = folder / "refined.pt"
    state = torch.load(path if path.exists() else folder / "filled.pt", weights_only=True)
    model = GPTBigCode(Shape(**state["plan"]["shape"]))
    model.load_state_dict(state["model"])
    some = random.Random(course.seed).sample(files, min(len(files), 4000))
    functions = measure.functions(some, course.rounds * course.functions)
    torch.set_flush_denormal(True)
    if not path.exists():
        save(path, state)
    for number in range(state.get("rounds", 0), course.rounds):
        started = time.monotonic()
        llm = LLM(export(path, work / "tokenizer.json", work)["q8_0"])
        chosen = functions[number * course.functions : (number + 1) * course.functions]
        lessons = write(llm, chosen, course.seed + number)
        texts = len(chosen) * (1 + N_SAMPLED)
        figures = {"round": float(number + 1), "texts": float(texts)}
        for kind in ("looping", "good", "end"):
            figures[kind] = sum(lesson.kind == kind for lesson in lessons) / texts
        figures |= learn(model, course, lessons, rows, number)
        state["model"] = model.state_dict()
        state["rounds"] = number + 1
        state["seconds"] += time.monotonic() - started
        save(path, state)
        log(folder / "refine.jsonl", {name: round(value, 4) for name, value in figures.items()})
    return path


def write(llm: LLM, functions: Sequence[measure.Function], seed: int) -> list[Lesson]:
    """Let the model write the functions' bodies, and mark what it wrote."""
    asked = [bare(function) if i % 2 else function for i, function in enumerate(functions)]
    prompts = [llm.tokenize(function.prompt)[-PROMPT_TOKENS:] for function in asked]
    lessons: list[Lesson] = []
    for i in range(1 + N_SAMPLED):
        completions = llm.generate(
            prompts,
            max_tokens=BODY_TOKENS,
            temperature=0.8 if i else 0.0,
            top_k=0,
            seed=seed * 1_000_000 + i * len(prompts),
        )
        for function, prompt, completion in zip(asked, prompts, completions, strict=True):
            lessons += _lessons(llm, function, prompt, completion)
    return lessons


def _lessons(
    llm: LLM, function: measure.Function, prompt: list[int], completion: Completion
) -> Iterator[Lesson]:
    """What one body teaches: at most what repeats or is good, and where it should have ended."""
    tokens = list(completion.tokens)
    if completion.finish_reason == "stop":
        tokens += llm.tokenize("<|endoftext|>")
    signs = [-sign for sign in repeats(tokens)]
    body, ended = measure.block(completion.text, function.indent)
    ended = ended or completion.finish_reason == "stop"
    end = _n_tokens(llm, tokens, len(body) + 1)  # with the token that ends it
    if not ended or any(signs[:end]):
        unrepeated = tokens[: _first_of_three(tokens)]
        if kept := _whole_lines(llm, function, unrepeated):
            last = llm.tokenize("\n<|endoftext|>")
            signs_of_end = [0] * len(prompt + kept) + [1] * len(last)
            yield Lesson(prompt + kept + last, signs_of_end, "end")
    elif is_good(function, body):
        signs[:end] = [1] * end
    if any(signs):
        kind = "good" if 1 in signs else "looping"
        yield Lesson(prompt + tokens, [0] * len(prompt) + signs, kind)


def _n_tokens(llm: LLM, tokens: list[int], n_characters: int) -> int:
    """How many of the tokens have the first `n_characters`, or more."""
    return bisect.bisect_left(
        range(len(tokens)), n_characters, key=lambda k: len(llm.detokenize(tokens[:k]))
    )


def _first_of_three(tokens: list[int]) -> int:
    """Where that ends for the first time which is the first to come thrice; else all tokens."""
    marks = repeats(tokens)
    if 1 not in marks:
        return len(tokens)
    end = marks.index(1) + 1
    ngram = tokens[end - NGRAM : end]
    return next(i for i in range(NGRAM, end) if tokens[i - NGRAM : i] == ngram)


def _whole_lines(llm: LLM, function: measure.Function, tokens: list[int]) -> list[int]:
    """The tokens of as many whole lines as are a good body, without the last break; else none."""
    text = llm.detokenize(tokens)
    while "\n" in text:
        text = text[: text.rindex("\n")].rstrip()
        if is_good(function, text):
            kept = tokens[: _n_tokens(llm, tokens, len(text))]
            return kept if llm.detokenize(kept) == text else []
    return []


def bare(function: measure.Function) -> measure.Function:
    """The function by its header alone, at the beginning of a document."""
    header = textwrap.dedent(function.header)
    return measure.Function(header, header, 0)


def repeats(tokens: Sequence[int]) -> list[int]:
    """For each token: 1 if it completes `NGRAM` tokens for the third time or more, else 0."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = [0] * len(tokens)
    for i in range(NGRAM, len(tokens) + 1):
        ngram = tuple(tokens[i - NGRAM : i])
        found[i - 1] = int(seen[ngram] >= 2)
        seen[ngram] += 1
    return found


def is_good(function: measure.Function, body: str) -> bool:
    """Whether a body parses and does something: more than a docstring or `pass`."""
    tree = measure.parsed(function, body)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            has_docstring = ast.get_docstring(node) is not None
            return any(not isinstance(x, ast.Pass) for x in node.body[has_docstring:])
    return False


def learn(
    model: GPTBigCode, course: Course, lessons: list[Lesson], rows: np.ndarray, number: int
) -> dict[str, float]:
    """One pass over the lessons, longest with longest; return what the losses were."""
    rng = random.Random(course.seed + number)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=course.bf16)
    lessons = sorted(lessons, key=lambda lesson: len(lesson.ids))
    batches = [lessons[at : at + course.batch] for at in range(0, len(lessons), course.batch)]
    rng.shuffle(batches)
    optimizer = Optimizer(model, course.matrix_lr, course.other_lr)
    sums = {"unlikelihood": 0.0, "likelihood": 0.0, "source": 0.0}
    n_rows = len(batches) * course.rows
    order = np.random.default_rng(course.seed).permutation(len(rows))
    order = np.resize(order, course.rounds * n_rows)[number * n_rows :]
    for i, batch in enumerate(batches):
        ids, signs = _padded(batch)
        parts = 4
        n_signed = int((signs != 0).sum())
        for part in range(parts):
            with precision:
                likelihood, unlikelihood = _signed_loss(model, ids[part::parts], signs[part::parts])
            ((likelihood + unlikelihood) / n_signed).backward()
            sums["likelihood"] += likelihood.item() / n_signed / len(batches)
            sums["unlikelihood"] += unlikelihood.item() / n_signed / len(batches)
        with precision:
            some = rows[order[i * course.rows : (i + 1) * course.rows]]
            sums["source"] += backward_rows(model, some) / len(batches)
        # Each round begins slowly, for its optimizer begins anew, and the last ends slowly.
        done = (number + i / len(batches)) / course.rounds
        optimizer.step(min(1.0, (i + 1) / 8) * (1 - 0.9 * done))
    return sums


def _padded(batch: Sequence[Lesson]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and signs, (texts, tokens) each; what pads has the sign 0."""
    length = max(len(lesson.ids) for lesson in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.int64)
    signs = torch.zeros(len(batch), length, dtype=torch.int64)
    for i, lesson in enumerate(batch):
        ids[i, : len(lesson.ids)] = torch.tensor(lesson.ids)
        signs[i, : len(lesson.ids)] = torch.tensor(lesson.signs)
    return ids, signs


def _signed_loss(
    model: GPTBigCode, ids: torch.Tensor, signs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens, in nats: -log p where the sign is 1, -log(1 - p) where it is -1."""
    positions = torch.arange(ids.shape[1] - 1).expand(len(ids), -1)
    hidden = model(ids[:, :-1], positions)
    marked = signs[:, 1:] != 0
    logits = functional.linear(hidden[marked], model.transformer["wte"].weight).float()
    targets, sign = ids[:, 1:][marked], signs[:, 1:][marked]
    log_p = -functional.cross_entropy(logits, targets, reduction="none")
    log_rest = torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
    return -log_p[sign > 0].sum(), -log_rest[sign < 0].sum()
