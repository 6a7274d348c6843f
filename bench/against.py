"""Another program and ours on the same model, in turns: `python -m bench.against llama-cpp`.

Machines drift and neighbors are noisy; runs that take turns, A B A B, share both. A ratio is the
median of those of the pairs, with the smallest and the largest: above 1 we are faster.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from bench.rival import RIVALS, Rival
from starcoder.bench import sources
from starcoder.bench.result import Pairs, Speed
from starcoder.bench.runner import Runner, Task, check_room
from starcoder.bench.session import turns
from starcoder.bench.sources import Source
from starcoder.cli.bench_report import rounded
from starcoder.core import machine, ops
from starcoder.errors import InputError, StarcoderError


def main() -> int:
    """Measure, and print a table or a line of JSON for each type."""
    options = _parser().parse_args()
    try:
        _run(options)
    except StarcoderError as error:
        print(f"bench.against: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.against", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("program", help=", ".join(RIVALS))
    parser.add_argument("--python", default=sys.executable, help="a Python that has its package")
    parser.add_argument("-m", "--model", help="file, directory or Hub name")
    parser.add_argument("--shape", help="random weights: starcoderbase-1b, ...")
    parser.add_argument("--type", help="of the shape's weights; q4_0,q8_0: in turn")
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-predict", type=int, default=64, help="tokens one by one")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before")
    parser.add_argument("--batch", type=int, default=1, help="sequences that decode together")
    parser.add_argument("-r", "--repeats", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--json", action="store_true", help="a line for each type")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.program == "llama-cpp" and options.batch > 1:
        advice = "its package decodes one sequence"
        raise InputError("--batch", f"{options.batch} with {options.program}", "1", advice)
    task = Task(options.n_prompt, options.n_predict, options.depth, options.batch)
    found = sources.find(options.model, options.shape, options.type)
    check_room(found[0].config, task)
    ops.set_n_threads(machine.threads(options.threads).n)
    with Rival(options.program, options.python) as rival:
        for source in found:
            answer = _measure(source, task, rival, options.repeats)
            print(json.dumps(rounded(answer)) if options.json else _table(answer), flush=True)


def _measure(source: Source, task: Task, rival: Rival, repeats: int) -> dict[str, Any]:
    """Speeds of both and their ratios."""
    checkpoint, name, type_name = source.open()
    print(f"bench: {name} {type_name}: loading it in both", file=sys.stderr, flush=True)
    runner = Runner(checkpoint, task)
    rival.load(checkpoint, task, ops.n_threads())
    runner.warm_up()
    answer: dict[str, Any] = {"model": name, "type": type_name, "rival": rival.name}
    for kind, run, their_run, work in (
        ("prompt", runner.prompt, rival.prompt, runner.prompt_work),
        ("decode", runner.decode, rival.decode, runner.decode_work(task.batch)),
    ):
        print(f"bench: {kind}, {repeats} times", file=sys.stderr, flush=True)
        ours, theirs = (Speed(work, seconds) for seconds in turns(repeats, run, their_run))
        answer |= {f"{kind}_tps": ours.tps, f"rival_{kind}_tps": theirs.tps}
        answer |= Pairs.of(ours, theirs).as_json(kind)
    return answer | {"threads": ops.n_threads(), "isa": ops.isa()}


def _table(answer: dict[str, Any]) -> str:
    lines = [f"{answer['model']} {answer['type']} to {answer['rival']}"]
    for kind in ("prompt", "decode"):
        ours, theirs = answer[f"{kind}_tps"], answer[f"rival_{kind}_tps"]
        low, high = answer[f"{kind}_ratio_range"]
        ratio = f"ratio {answer[f'{kind}_ratio']:.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"  {kind}: {ours:.1f} to {theirs:.1f} tokens/s, {ratio}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
