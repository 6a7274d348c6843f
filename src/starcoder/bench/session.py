"""The order of runs: warm-up, prompts, tokens, and the machine's limits on both sides.

Machines drift and neighbors are noisy. Runs that take turns meet the same minutes, so that their
ratio holds where no single time does.
"""

from __future__ import annotations

from collections.abc import Callable

from starcoder.bench.result import Result, Speed
from starcoder.bench.runner import Runner
from starcoder.core import limits
from starcoder.core.limits import Limits

__all__ = ["measure", "turns"]


def measure(
    runner: Runner,
    name: str,
    type_name: str,
    *,
    before: Limits,
    memory: limits.Memory,
    repeats: int,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Times a model.

    Args:
        runner: the model and the task.
        name: of the model, for people.
        type_name: of its weights, for people.
        before: what the machine could do just now.
        memory: to read between the runs.
        repeats: runs of each kind; the median counts.
        say: is told what comes next.
    """
    batch = runner.task.batch
    say("warm-up")
    runner.warm_up()
    say(f"prompt of {runner.task.n_prompt} tokens, {repeats} times")
    (prompt,) = turns(repeats, runner.prompt)
    say(f"{runner.task.n_decode} tokens one by one, {repeats} times")
    alone = (lambda: runner.decode(1)) if batch > 1 else None
    first = memory.read_gbps()
    runs = (runner.decode, memory.read_gbps, *([alone] if alone else []))
    decode, reads, *decode_alone = turns(repeats, *runs)
    say("measuring what the machine can do, again")
    works = runner.prompt_work, runner.decode_work(batch)
    return Result(
        name=name,
        type_name=type_name,
        type=runner.type,
        task=runner.task,
        weights_bytes=runner.read_bytes,
        before=before,
        after=limits.measure(memory),
        reads=(first, *reads),
        prompt=Speed(works[0], prompt),
        decode=Speed(works[1], decode),
        alone=Speed(runner.decode_work(1), decode_alone[0]) if alone else None,
    )


def turns(repeats: int, *runs: Callable[[], float]) -> list[tuple[float, ...]]:
    """What each run returns, in turns."""
    rounds = [[run() for run in runs] for _ in range(repeats)]
    return list(zip(*rounds, strict=True))
