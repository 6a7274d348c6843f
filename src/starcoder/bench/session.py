"""The order of runs: warm-up, ours and the others' in turns, the machine's limits on both sides.

Machines drift and neighbors are noisy. Runs that take turns meet the same minutes, so that their
ratio holds where no single time does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from starcoder import limits
from starcoder.bench.result import Result, Speed
from starcoder.bench.rival import Rival
from starcoder.bench.runner import Runner, Work
from starcoder.limits import Limits

__all__ = ["measure"]


def measure(
    runner: Runner,
    name: str,
    type_name: str,
    *,
    before: Limits,
    memory: limits.Memory,
    repeats: int,
    rival: Rival | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:
    """Times a model, beside a rival that has the same one loaded.

    Args:
        runner: the model and the task.
        name: of the model, for people.
        type_name: of its weights, for people.
        before: what the machine could do just now.
        memory: to read between the runs.
        repeats: runs of each kind; the median counts.
        rival: another program, in turns with ours.
        say: is told what comes next.

    Raises:
        InputError: the rival failed.
    """
    batch = runner.task.batch
    say("warm-up")
    runner.warm_up()
    say(f"prompt of {runner.task.n_prompt} tokens, {repeats} times")
    prompt, rival_prompt = _turns(repeats, runner.prompt, rival.prompt if rival else None)
    say(f"{runner.task.n_decode} tokens one by one, {repeats} times")
    alone = (lambda: runner.decode(1)) if batch > 1 else None
    first = memory.read_gbps()
    decode, reads, rival_decode, decode_alone = _turns(
        repeats, runner.decode, memory.read_gbps, rival.decode if rival else None, alone
    )
    say("measuring what the machine can do, again")
    works = runner.prompt_work, runner.decode_work(batch)
    result = Result(
        name=name,
        type_name=type_name,
        type=runner.type,
        task=runner.task,
        weights_bytes=runner.read_bytes,
        before=before,
        after=limits.measure(memory),
        reads=(first, *reads),
        prompt=_speed(works[0], prompt),
        decode=_speed(works[1], decode),
        alone=_speed(runner.decode_work(1), decode_alone) if alone else None,
    )
    if rival is None:
        return result
    theirs = _speed(works[0], rival_prompt), _speed(works[1], rival_decode)
    return replace(result, rival=rival.name, rival_prompt=theirs[0], rival_decode=theirs[1])


def _turns(repeats: int, *runs: Callable[[], float] | None) -> list[list[float]]:
    """What each run returns, in turns."""
    rounds = [[run() if run else 0.0 for run in runs] for _ in range(repeats)]
    return [list(column) for column in zip(*rounds, strict=True)]


def _speed(work: Work, seconds: list[float]) -> Speed:
    return Speed(work, tuple(seconds))
