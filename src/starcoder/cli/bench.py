"""`starcoder bench`: how fast a model runs, beside what this machine can do.

The work is in `starcoder.bench`; here are the options and the order of things. Figures go to
stdout, what is being done to stderr.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from starcoder.cli import bench_report as report
from starcoder.cli.numbers import whole
from starcoder.cli.rewrite import Pre, Threads
from starcoder.errors import InputError

if TYPE_CHECKING:
    from starcoder.bench.result import Result
    from starcoder.bench.runner import Task
    from starcoder.bench.sources import Source
    from starcoder.core.limits import Limits, Memory

__all__ = ["bench"]

_MOST = 1 << 24  # of anything that is counted in tokens
_MOVED = {"against": "bench.against", "rival_python": "bench.against", "plot": "bench.roofline"}
_Moved = Annotated[str | None, typer.Option(hidden=True)]


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
    pre: Pre = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    against: _Moved = None,
    rival_python: _Moved = None,
    plot: _Moved = None,
) -> int:
    """Measure tokens a second, and their share of what this machine can do."""
    from starcoder.bench import sources
    from starcoder.bench.runner import Task, check_room
    from starcoder.core import limits, machine, ops

    _refuse_moved(against=against, rival_python=rival_python, plot=plot)
    task = Task(n_prompt, n_decode, depth, batch)
    found = sources.find(model, shape, type_, pre)
    check_room(found[0].config, task)
    allowed = machine.threads(threads)
    ops.set_n_threads(allowed.n)
    if allowed.note:
        report.say(f"threads = {allowed.n} {allowed.note}")
    report.say("measuring what the machine can do")
    memory = limits.Memory()
    now, results = limits.measure(memory), []
    for source in found:
        results.append(_measure(source, task, now, memory, repeats))
        now = results[-1].after
    text = report.as_json if as_json else report.as_text
    print(text(results, repeats), flush=True)
    return 0


def _refuse_moved(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            option, program = f"--{name.replace('_', '-')}", _MOVED[name]
            expected = f"python -m {program} in the repository"
            raise InputError(option, "an option that has moved", expected, "see docs/bench.md")


def _measure(source: Source, task: Task, before: Limits, memory: Memory, repeats: int) -> Result:
    from starcoder.bench import session
    from starcoder.bench.runner import Runner

    checkpoint, name, type_name = source.open()

    def say(what: str) -> None:
        report.say(f"{name} {type_name}: {what}")

    say("loading")
    runner = Runner(checkpoint, task)
    return session.measure(
        runner, name, type_name, before=before, memory=memory, repeats=repeats, say=say
    )
