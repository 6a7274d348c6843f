"""What `starcoder bench` says: two small tables, or one JSON object with the same figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starcoder.bench.result import Result, Speed
    from starcoder.core.limits import Limits

__all__ = ["as_json", "as_text", "rounded", "say", "title"]

_LIMITS = (  # a row each: the field, its name, its unit
    ("read_gbps", "read", "GB/s"),
    ("int8_gmacs", "int8", "10^9 multiply-adds/s"),
    ("bf16_gmacs", "bf16", "10^9 multiply-adds/s"),
    ("f32_gmacs", "f32", "10^9 multiply-adds/s"),
)


def say(line: str) -> None:
    """What is being done, on stderr."""
    print(f"bench: {line}", file=sys.stderr, flush=True)


def title(results: Sequence[Result]) -> str:
    """The model and how it runs, for all results."""
    from starcoder.core import ops

    task, n = results[0].task, ops.n_threads()
    words = [results[0].name, f"{n} thread{'s' if n > 1 else ''} ({ops.isa()})"]
    words += [f"depth {task.depth}"] if task.depth else []
    words += [f"batch {task.batch}"] if task.batch > 1 else []
    return ", ".join(words)


def as_json(results: Sequence[Result], repeats: int) -> str:
    """One object: the first result's figures, and `results` if there are several."""
    from starcoder.core import ops

    found = [result.as_json() for result in results]
    answer: dict[str, Any] = found[0] | asdict(results[0].task)
    answer |= {"limits_before": asdict(results[0].before)}
    answer |= {"limits_after": asdict(results[-1].after)}
    answer |= {"repeats": repeats, "threads": ops.n_threads(), "isa": ops.isa()}
    if len(found) > 1:
        answer["results"] = found
    return json.dumps(rounded(answer), ensure_ascii=False)


def as_text(results: Sequence[Result], repeats: int) -> str:
    """The machine's limits, first and last, then a row for each kind of run."""
    lines = [f"{title(results)}; medians of {repeats}", ""]
    lines += [*_limits(results[0].before, results[-1].after), ""]
    lines += _table(results)
    for result in results:
        lines += _batch(result)
    return "\n".join(lines)


def _limits(before: Limits, after: Limits) -> list[str]:
    lines = [f"{'limit':8}{'before':>9}{'after':>9}"]
    for field, name, unit in _LIMITS:
        values = getattr(before, field), getattr(after, field)
        lines.append(f"{name:8}{values[0]:9.1f}{values[1]:9.1f}  {unit}")
    if before.bf16_gmacs == before.f32_gmacs:
        lines.append("bf16 is computed as f32 on this machine")
    return lines


def _table(results: Sequence[Result]) -> list[str]:
    head = f"{'type':8}{'run':>14}{'tokens/s':>10}{'GB/s':>8}{'GMAC/s':>9}  share of the limit"
    lines = [head]
    for r in results:
        prompt, decode = f"prompt {r.task.n_prompt}", f"decode {r.task.n_decode}"
        share = f"{r.prompt_share:.0%} of {_arithmetic(r)}"
        lines.append(_row(r.type_name, prompt, r.prompt, share))
        share = f"{r.decode_share:.0%} of reading"
        lines.append(_row(r.type_name, decode, r.decode, share))
    return lines


def _row(type_name: str, run: str, speed: Speed, share: str) -> str:
    figures = f"{speed.tps:10.1f}{speed.gbps:8.1f}{speed.gmacs:9.1f}"
    return f"{type_name:8}{run:>14}{figures}  {share}"


def _arithmetic(result: Result) -> str:
    """The limit of its prompts by name."""
    limits = result.limits
    value = limits.gmacs(result.type)
    names = {limits.f32_gmacs: "f32", limits.int8_gmacs: "int8"}
    return names.get(value, "bf16")


def _batch(result: Result) -> list[str]:
    from starcoder.bench.result import Pairs

    if result.alone is None:
        return []
    words = f"batch of {result.task.batch} to one sequence ({result.alone.tps:.1f} tokens/s)"
    return ["", f"{result.type_name} {words}: {Pairs.of(result.decode, result.alone)}"]


def rounded(value: Any) -> Any:
    """With the digits that a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value
