"""What the command line says on stderr: facts, settings, times. In the manner of ggml's program."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from starcoder.cli.flags import LABELS
from starcoder.cli.text_file import read_file
from starcoder.errors import InputError
from starcoder.sampling.options import DECLARED

if TYPE_CHECKING:
    from starcoder.completion.result import Completion
    from starcoder.completion.stream import Stream
    from starcoder.facts import Facts
    from starcoder.llm import LLM

__all__ = ["Clock", "facts", "json_line", "settings", "timings", "token_test", "token_tests"]

_UNSAID = ("max_tokens", "ignore_eos", "seed")  # by ggml's program; the seed has a line of its own


class Clock:
    """Tells the time since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def ms(self) -> float:
        """Milliseconds so far."""
        return (time.perf_counter() - self._started) * 1e3


def facts(llm: LLM) -> None:
    """The model: where it came from, its shape, how it runs."""
    f = llm.facts
    rows: list[tuple[str, object]] = [
        ("model", f"{f.source} ({f.format}{', ' if f.name else ''}{f.name})"),
        ("n_vocab", f.n_vocab),
        ("n_ctx", f.n_ctx if f.n_ctx == f.max_ctx else f"{f.n_ctx} of {f.max_ctx}"),
        ("n_embd", f.dim),
        ("n_head", f"{f.n_heads} ({f.n_kv_heads} for keys and values)"),
        ("n_layer", f.n_layers),
        ("type", f.type_name),
        ("parameters", f"{f.n_parameters / 1e6:.2f} M"),
        ("memory", f"{f.weight_bytes / 2**20:.2f} MB of weights"),
        ("threads", " ".join(filter(None, (str(f.n_threads), f.threads_note, f"({f.isa})")))),
    ]
    for name, value in rows:
        _say(f"{name:10} = {value}")


def settings(stream: Stream) -> None:
    """How tokens are chosen, and how many the prompt has."""
    _say(f"seed = {stream.options.seed}")
    for name in (name for name in DECLARED if name not in _UNSAID):
        value = getattr(stream.options, name)
        shown = f"{value:.3f}" if isinstance(value, float) else value
        _say(f"{LABELS[name]:14} = {shown}")
    _say(f"number of tokens in prompt = {stream.prompt_tokens}\n")


def timings(completion: Completion, facts: Facts, clock: Clock) -> None:
    """Where the time went, tokens a second, and the most memory in use at once."""
    t = completion.timings
    print(file=sys.stderr)
    _say(f"    load time = {facts.load_ms:8.2f} ms")
    _say(f"  sample time = {t.sample_ms:8.2f} ms")
    _say(f"  prompt time = {t.prompt_ms:8.2f} ms{_speed(t.prompt_per_second)}")
    _say(f" predict time = {t.predict_ms:8.2f} ms{_speed(t.predict_per_second)}")
    _say(f"   total time = {clock.ms:8.2f} ms")
    _say(f"  peak memory = {_peak_bytes() / 2**20:8.2f} MB")


def json_line(completion: Completion, facts: Facts) -> str:
    """The answer as one JSON object, the time for loading the model among its timings."""
    answer = dataclasses.asdict(completion)
    answer["timings"] = {"load_ms": facts.load_ms, **answer["timings"]}
    return json.dumps(answer, ensure_ascii=False)


def token_tests(path: Path) -> list[tuple[str, list[int]]]:
    """The tests in a file of lines `text => id,id,id`; other lines are none.

    Only LF ends a line: form feeds and their like belong to a test's text.

    Raises:
        InputError: no file that can be read, no test in it, or one of something else than ids.
    """
    lines = read_file(path, "-tt").split("\n")
    parsed = (_parse(number, line) for number, line in enumerate(lines, 1))
    tests = [test for test in parsed if test is not None]
    if not tests:
        raise InputError(f"-tt {path}", "no test", "lines of text => id,id,id")
    return tests


def token_test(llm: LLM, tests: Sequence[tuple[str, list[int]]]) -> None:
    """Compare our tokens with the expected ones."""
    n_failed = 0
    for text, expected in tests:
        found = llm.tokenize(text)
        if found != expected:
            n_failed += 1
            print(f"token test: failed: {text!r}", file=sys.stderr)
            print(f"token test: expected {expected}", file=sys.stderr)
            print(f"token test: found    {found}", file=sys.stderr)
    print(f"token test: {n_failed} tests failed out of {len(tests)} tests.", file=sys.stderr)


# ---------------------------------------------------------------------------------------------


def _parse(number: int, line: str) -> tuple[str, list[int]] | None:
    text, arrow, ids = line.partition(" => ")
    if not arrow:
        return None
    try:
        return text, [int(token) for token in ids.split(",") if token.strip()]
    except ValueError:
        raise InputError(f"-tt line {number}", repr(ids[:40]), "ids like 12,34,56") from None


def _say(line: str) -> None:
    print(f"main: {line}", file=sys.stderr)


def _speed(per_second: float) -> str:
    if not per_second:
        return ""
    return f" / {1e3 / per_second:.2f} ms per token / {per_second:.2f} tokens per second"


def _peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
