"""Refine: teach the trained model from its own text, so that it neither loops nor runs on.

A small model that always takes the likeliest token soon repeats a line for ever. In rounds, the
exported model writes the bodies of functions of the training split, through starcoder itself: once
greedily, `N_SAMPLED` times at random. In what it wrote

- a token that completes a sequence of `NGRAM` for the third time is made less likely (unlikelihood
  on the model's own text, Welleck et al. 2019); of source, that is one token in 90;
- the body of a function that ends, parses and repeats nothing is made more likely, up to and with
  the token that ends it.

Gaps of a line or a few in source of the training split are filled in both orders, with nothing
learned but the middle and its end. Rows of source keep the model where it was otherwise. A round
that was interrupted is done again. Nothing of what is held out is asked for.
"""

from __future__ import annotations

import ast
import bisect
import json
import random
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from starcoder import LLM
from training import dataset, measure, tokenizer
from training.corpus import File
from training.export import export
from training.model import GPTBigCode
from training.optimizer import make_optimizers
from training.shape import Shape
from training.train import save

NGRAM = 8
N_SAMPLED = 2
PROMPT_TOKENS, BODY_TOKENS = 384, 192
PREFIX_CHARACTERS, SUFFIX_CHARACTERS = 1400, 1000  # at most, around a gap
GAP_LINES, GAP_TOKENS = 3, 900  # at most; tokens with what is around


@dataclass(frozen=True, slots=True)
class Course:
    """How the model is refined.

    Attributes:
        rounds: How often it writes and learns.
        functions: Asked for in a round; half of them by their header alone.
        gaps: Filled in a round.
        batch: Texts in one update of the weights.
        rows: Rows of source in one update.
        matrix_lr: Highest learning rate of the matrices (Muon).
        other_lr: Highest learning rate of everything else (AdamW).
        seed: Of the choice of functions, and of what is written at random.
    """

    rounds: int = 7
    functions: int = 384
    gaps: int = 768
    batch: int = 32
    rows: int = 8
    matrix_lr: float = 6e-4
    other_lr: float = 3e-4
    seed: int = 3


@dataclass(frozen=True, slots=True)
class Lesson:
    """A text and what to learn from it.

    Attributes:
        ids: Prompt and body, (n,) tokens.
        signs: For each of `ids`: 1 make it likelier, -1 less likely, 0 leave it.
    """

    ids: list[int]
    signs: list[int]


def refine(course: Course, work: Path, files: Sequence[File], rows: np.ndarray) -> Path:
    """Refine the model of `work/run/checkpoint.pt`; return the path of the new checkpoint.

    Args:
        course: What to do.
        work: The work folder; `work/run/refined.pt` is where it goes on.
        files: Of the training split.
        rows: (n, context + 1) tokens that training did not reach.
    """
    folder = work / "run"
    path = folder / "refined.pt"
    state = torch.load(path if path.exists() else folder / "checkpoint.pt", weights_only=True)
    model = GPTBigCode(Shape(**state["plan"]["shape"]))
    model.load_state_dict(state["model"])
    some = random.Random(course.seed).sample(files, min(len(files), 4000))
    functions = measure.functions(some, course.rounds * course.functions)
    bpe = tokenizer.load(work / "tokenizer.json")
    torch.set_flush_denormal(True)
    if not path.exists():
        save(path, state)
    for number in range(state.get("rounds", 0), course.rounds):
        started = time.monotonic()
        llm = LLM(export(path, work / "tokenizer.json", work)["q8_0"])
        chosen = functions[number * course.functions : (number + 1) * course.functions]
        lessons = write(llm, chosen, course.seed + number)
        figures = {
            "round": float(number),
            "texts": float(len(lessons)),
            "looping": sum(-1 in lesson.signs for lesson in lessons) / len(lessons),
            "good": sum(1 in lesson.signs for lesson in lessons) / len(lessons),
        }
        lessons += gaps(bpe, some, course.gaps, course.seed + number)
        figures |= learn(model, course, lessons, rows, number)
        state["model"] = model.state_dict()
        state["rounds"] = number + 1
        state["seconds"] += time.monotonic() - started
        save(path, state)
        line = json.dumps({name: round(value, 4) for name, value in figures.items()})
        print(line, flush=True)
        with (folder / "refine.jsonl").open("a") as log:
            log.write(line + "\n")
    return path


def write(llm: LLM, functions: Sequence[measure.Function], seed: int) -> list[Lesson]:
    """Let the model write the functions' bodies, and mark what it wrote."""
    asked = [bare(function) if i % 2 else function for i, function in enumerate(functions)]
    prompts = [llm.tokenize(function.prompt)[-PROMPT_TOKENS:] for function in asked]
    lessons = []
    for i in range(1 + N_SAMPLED):
        completions = llm.generate(
            prompts,
            max_tokens=BODY_TOKENS,
            temperature=0.8 if i else 0.0,
            top_k=0,
            seed=seed * 1_000_000 + i * len(prompts),
        )
        for function, prompt, completion in zip(asked, prompts, completions, strict=True):
            tokens = list(completion.tokens)
            if completion.finish_reason == "stop":
                tokens += llm.tokenize("<|endoftext|>")
            signs = [-sign for sign in repeats(tokens)]
            body, ended = measure.block(completion.text, function.indent)
            ended = ended or completion.finish_reason == "stop"
            if ended and is_good(function, body):
                end = bisect.bisect_right(
                    range(len(tokens)), len(body), key=lambda k: len(llm.detokenize(tokens[:k]))
                )
                if not any(signs[:end]):
                    signs[:end] = [1] * end
            lessons.append(Lesson(prompt + tokens, [0] * len(prompt) + signs))
    return [lesson for lesson in lessons if any(lesson.signs)]


def bare(function: measure.Function) -> measure.Function:
    """The function by its header alone, at the beginning of a document."""
    header = textwrap.dedent(function.header)
    return measure.Function(header, header, 0)


def gaps(bpe: Tokenizer, files: Sequence[File], n: int, seed: int) -> list[Lesson]:
    """`n` gaps, from anywhere in a line to the end of that line or one of the next."""
    rng = random.Random(seed)
    [end_id] = bpe.encode("<|endoftext|>").ids
    lessons: list[Lesson] = []
    while len(lessons) < n:
        text = rng.choice(files).text
        ends = [i for i, character in enumerate(text) if character == "\n"]
        if len(ends) < 8:
            continue
        first = rng.randrange(len(ends) - GAP_LINES)
        start = ends[first] if rng.random() < 0.5 else rng.randint(ends[first], ends[first + 1])
        stop = ends[first + rng.randint(1, GAP_LINES)]
        prefix = text[max(0, start - rng.randrange(PREFIX_CHARACTERS)) : start]
        suffix = text[stop : stop + rng.randrange(SUFFIX_CHARACTERS)]
        prompt = dataset.fim_prompt(bpe, prefix, suffix, suffix_first=len(lessons) % 2 == 1)
        middle = [*bpe.encode(text[start:stop]).ids, end_id]
        if len(prompt) + len(middle) <= GAP_TOKENS:
            lessons.append(Lesson(prompt + middle, [0] * len(prompt) + [1] * len(middle)))
    return lessons


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
    lessons = sorted(lessons, key=lambda lesson: len(lesson.ids))
    batches = [lessons[at : at + course.batch] for at in range(0, len(lessons), course.batch)]
    rng.shuffle(batches)
    optimizers = make_optimizers(model, course.matrix_lr, course.other_lr)
    peaks = [[group["lr"] for group in o.param_groups] for o in optimizers]
    sums = {"unlikelihood": 0.0, "likelihood": 0.0, "source": 0.0}
    n_rows = len(batches) * course.rows
    order = np.random.default_rng(course.seed).permutation(len(rows))
    order = np.resize(order, course.rounds * n_rows)[number * n_rows :]
    for i, batch in enumerate(batches):
        # Each round begins slowly, for its optimizers begin anew, and the last ends slowly.
        done = (number + i / len(batches)) / course.rounds
        share = min(1.0, (i + 1) / 8) * (1 - 0.9 * done)
        for optimizer, group_peaks in zip(optimizers, peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, group_peaks, strict=True):
                group["lr"] = peak * share
        ids, signs = _padded(batch)
        parts = 4
        n_signed = int((signs != 0).sum())
        for part in range(parts):
            likelihood, unlikelihood = _signed_loss(model, ids[part::parts], signs[part::parts])
            ((likelihood + unlikelihood) / n_signed).backward()
            sums["likelihood"] += likelihood.item() / n_signed / len(batches)
            sums["unlikelihood"] += unlikelihood.item() / n_signed / len(batches)
        some = rows[order[i * course.rows : (i + 1) * course.rows]].astype(np.int64)
        for row in torch.from_numpy(some).split(4):
            positions = torch.arange(row.shape[1] - 1).expand(len(row), -1)
            loss = model.loss(row[:, :-1], row[:, 1:], positions) * (len(row) / course.rows)
            loss.backward()
            sums["source"] += loss.item() / len(batches)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
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
    logits = functional.linear(hidden[marked], model.transformer["wte"].weight)
    targets, sign = ids[:, 1:][marked], signs[:, 1:][marked]
    log_p = -functional.cross_entropy(logits, targets, reduction="none")
    log_rest = torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
    return -log_p[sign > 0].sum(), -log_rest[sign < 0].sum()
