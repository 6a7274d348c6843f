"""`starcoder bench`: how fast a model runs, beside what this machine can do and other programs.

The work is in `starcoder.bench`; here are the options and the order of things. Figures go to
stdout, what is being done to stderr.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starcoder.cli import bench_report as report
from starcoder.cli.numbers import whole
from starcoder.cli.rewrite import Pre, Threads
from starcoder.errors import InputError

if TYPE_CHECKING:
    from starcoder.bench.result import Result
    from starcoder.bench.rival import Rival
    from starcoder.bench.runner import Task
    from starcoder.checkpoint import Checkpoint
    from starcoder.config import ModelConfig
    from starcoder.limits import Limits, Memory
    from starcoder.mix import Mix

__all__ = ["bench"]

_MOST = 1 << 24  # of anything that is counted in tokens


def bench(
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="File, directory or Hub name. Default: the package's."),
    ] = None,
    n_prompt: Annotated[
        int, whole("-p", "--n-prompt", "Tokens of the prompt.", low=1, high=_MOST)
    ] = 512,
    n_decode: Annotated[
        int, whole("-n", "--n-predict", "Tokens one by one.", low=1, high=_MOST)
    ] = 64,
    threads: Threads = None,
    depth: Annotated[int, whole("--depth", "Tokens in the cache before.", high=_MOST)] = 0,
    batch: Annotated[
        int, whole("--batch", "Sequences that decode together.", low=1, high=1 << 12)
    ] = 1,
    repeats: Annotated[int, whole("-r", "--repeats", "The median counts.", low=1, high=1000)] = 5,
    shape: Annotated[
        str | None, typer.Option("--shape", help="Random weights: starcoderbase-1b, ... No file.")
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", help="Weight types for --shape, separated by commas: q4_0,q8_0."),
    ] = None,
    against: Annotated[
        str | None, typer.Option("--against", help="llama-cpp or ctranslate2, in turns with us.")
    ] = None,
    rival_python: Annotated[
        str | None, typer.Option("--rival-python", help="A Python that has it. Default: this one.")
    ] = None,
    pre: Pre = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the roofline into this .svg file.")
    ] = None,
) -> int:
    """Measure tokens a second, and their share of what this machine can do."""
    from starcoder import limits, machine, ops
    from starcoder.bench import roofline
    from starcoder.bench.rival import Rival
    from starcoder.bench.runner import Task, check_room

    if plot is not None:
        roofline.check_path(plot)
    _check_batch(batch, against)
    task = Task(n_prompt, n_decode, depth, batch)
    sources = _sources(model, shape, type_, pre)
    check_room(sources[0].config, task)
    allowed = machine.threads(threads)
    ops.set_n_threads(allowed.n)
    if allowed.note:
        report.say(f"threads = {allowed.n} {allowed.note}")
    python = rival_python or sys.executable
    with Rival(against, python) if against else nullcontext() as rival:
        report.say("measuring what the machine can do")
        memory = limits.Memory()
        now, results = limits.measure(memory), []
        for source in sources:
            results.append(_measure(source, task, now, memory, repeats, rival))
            now = results[-1].after
    text = report.as_json if as_json else report.as_text
    print(text(results, repeats), flush=True)
    if plot is not None:
        roofline.write(plot, results, report.title(results))
    return 0


def _check_batch(batch: int, against: str | None) -> None:
    if against == "llama-cpp" and batch > 1:
        found, advice = f"{batch} with --against {against}", "its package decodes one sequence"
        raise InputError("--batch", found, "1", advice)


@dataclass(frozen=True, slots=True)
class _Source:
    """A model that is yet to be opened: a file, or a shape and the mix of types it is to have."""

    config: ModelConfig
    file: Checkpoint | None = None
    mix: Mix | None = None

    def open(self) -> Checkpoint:
        """The model."""
        from starcoder.bench import synthetic

        if self.file is not None:
            return self.file
        assert self.mix is not None
        return synthetic.checkpoint(self.config, self.mix)


def _sources(
    model: str | None, shape: str | None, types: str | None, pre: str | None
) -> list[_Source]:
    from starcoder import formats, hub, pocket
    from starcoder.bench import synthetic
    from starcoder.mix import find_mix

    if shape is None:
        if types is not None:
            advice = "a file has its own types: see starcoder quantize"
            raise InputError("--type", "no --shape", "both, or neither", advice)
        file = formats.read(pocket.PATH if model is None else hub.resolve(model), pre)
        return [_Source(file.config, file)]
    if model is not None:
        raise InputError("-m and --shape", "both", "one of them")
    config = synthetic.config_of(shape)
    names = (types or "q4_0").split(",")
    return [_Source(config, mix=find_mix(name.strip(), "--type")) for name in names]


def _measure(
    source: _Source,
    task: Task,
    before: Limits,
    memory: Memory,
    repeats: int,
    rival: Rival | None,
) -> Result:
    from starcoder import ops
    from starcoder.bench import session
    from starcoder.bench.runner import Runner

    checkpoint = source.open()
    name = source.config.name or Path(checkpoint.source).name
    type_name = source.mix.name if source.mix else checkpoint.type_name

    def say(what: str) -> None:
        report.say(f"{name} {type_name}: {what}")

    say("loading")
    runner = Runner(checkpoint, task)
    if rival is not None:
        say("loading it in the other program")
        rival.load(checkpoint, task, ops.n_threads())
    return session.measure(
        runner,
        name,
        type_name,
        before=before,
        memory=memory,
        repeats=repeats,
        rival=rival,
        say=say,
    )
