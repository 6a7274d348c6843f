"""Requests to one engine, timed: `python -m bench.serving`.

What waits for an answer: someone who types, asks again, comes back after others or after a restart;
clients side by side, whose prompts are in the cache or bring new tokens; requests with a deadline.
Random weights in the shape of a model, tokens at random: when tokens come does not depend on which.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from starcoder import prompt_cache
from starcoder.bench import synthetic
from starcoder.convert.mix import find_mix
from starcoder.core import machine, ops
from starcoder.engine import Engine, Loop, Request
from starcoder.errors import StarcoderError
from starcoder.model import models
from starcoder.model.models import Recorded
from starcoder.sampling.options import GenerationOptions

N_CTX, N_CLIENTS, N_ANSWER = 4096, 8, 64
N_FILE, N_CHAT, N_NEW = 1_500, 600, 200  # tokens
_LINE = 10  # tokens
_MARK = "bench"


@dataclass
class Watched:
    """A request, and when its tokens came."""

    started: float
    came: list[float] = field(default_factory=list)
    n_tokens: int = 0

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.came[0] - self.started

    @property
    def longest_gap(self) -> float:
        """Seconds between two tokens."""
        return max(b - a for a, b in zip(self.came, self.came[1:], strict=False))


class Ends:
    """The ends of a prompt as its windows, one for every so many tokens that a line has."""

    def __init__(self, prompt: list[int]) -> None:
        self._prompt = prompt
        self.lengths = [*range(_LINE, len(prompt), _LINE), len(prompt)]

    def window(self, i: int) -> list[int]:
        """The token ids of one."""
        return self._prompt[-self.lengths[i] :]


def ask(loop: Loop, prompt: list[int], n: int = 1, **options: float) -> Watched:
    """Ask, and wait for the answer."""
    watched = Watched(time.perf_counter())
    chosen = GenerationOptions(max_tokens=n, **options)  # type: ignore[arg-type]
    request: Request = loop.submit(prompt, chosen, windows=Ends(prompt))
    for i in range(n):
        event = request.wait(i)
        watched.came.append(time.perf_counter())
        watched.n_tokens += event is not None and event.token is not None
        if event is None or event.finish_reason is not None:
            break
    return watched


class Bench:
    """Everything that is timed, on one model."""

    def __init__(self, model: Recorded) -> None:
        self._model, self._random = model, random.Random(0)
        self.loop = self.new_loop()

    def new_loop(self) -> Loop:
        """An engine with nothing in its cache."""
        return Loop(Engine(self._model, n_ctx=N_CTX, n_positions=6 * N_CTX, n_batch=512))

    def tokens(self, n: int) -> list[int]:
        """Tokens that nobody has asked about."""
        return [self._random.randrange(1, self._model.config.n_vocab) for _ in range(n)]

    def typing(self) -> dict[str, float]:
        """Seconds to the first token of a prompt, and of what is asked after it."""
        prompt = self.tokens(N_FILE)
        found = {"first token, nothing in the cache": ask(self.loop, prompt).first}
        again = []
        for _ in range(5):
            prompt = [*prompt, *self.tokens(5)]
            again.append(ask(self.loop, prompt).first)
        found["asked again with 5 more tokens"] = median(again)
        ask(self.loop, self.tokens(N_CHAT), 20)
        ask(self.loop, self.tokens(N_FILE), 4)
        prompt = [*prompt, *self.tokens(5)]
        found["after a chat and another file"] = ask(self.loop, prompt).first
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kept"
            started = time.perf_counter()
            n = prompt_cache.save(self.loop, path, _MARK, 1 << 40)
            found["writing what is computed"] = time.perf_counter() - started
            found["megabytes written"] = path.stat().st_size / 1e6
            found["tokens written"] = n
            self.loop.close()
            self.loop = self.new_loop()
            prompt_cache.save(self._only(prompt), path, _MARK, 1 << 40)
            started = time.perf_counter()
            prompt_cache.load(self.loop, path, _MARK)
            ask(self.loop, [*prompt, *self.tokens(5)])
            found["after a restart, reading the file too"] = time.perf_counter() - started
        return found

    def _only(self, prompt: list[int]) -> Loop:
        """An engine that has computed this prompt alone."""
        loop = self.new_loop()
        ask(loop, prompt)
        return loop

    def clients(self, n_clients: int, new: int) -> tuple[float, float]:
        """Tokens a second of some clients together, and the longest gap in any of their texts."""
        prompts = [self.tokens(300) for _ in range(n_clients)]
        if not new:
            for prompt in prompts:
                ask(self.loop, prompt)
        else:
            prompts = [self.tokens(new) for _ in range(n_clients)]
        started = time.perf_counter()
        with ThreadPoolExecutor(n_clients) as pool:
            found = list(pool.map(lambda prompt: ask(self.loop, prompt, N_ANSWER), prompts))
        seconds = time.perf_counter() - started
        return n_clients * N_ANSWER / seconds, max(one.longest_gap for one in found)

    def deadlines(self, n: int) -> dict[str, float]:
        """How late the latest of some requests with random limits is, in seconds."""
        late, n_empty, known = [], 0, self.tokens(N_FILE)
        ask(self.loop, known)
        for i in range(n):
            limit = self._random.uniform(60, 1500)
            length = self._random.randrange(20, 1200)
            prompt = known[:length] if i % 2 else self.tokens(length)
            started = time.perf_counter()
            n_empty += not ask(self.loop, prompt, 200, max_time_ms=limit).n_tokens
            late.append(time.perf_counter() - started - limit / 1e3)
        return {
            "latest of those with a deadline": max(late),
            "late by more than 50 ms": sum(x > 0.05 for x in late),
            "without a token": n_empty,
            "with a deadline": n,
        }


def measure(shape: str, kind: str, rounds: int, n_deadlines: int) -> dict[str, float]:
    """All figures, in seconds unless they say otherwise."""
    bench = Bench(models.build(synthetic.checkpoint(synthetic.config_of(shape), find_mix(kind))))
    found = bench.typing()
    gap = 0.0
    for name, new in (("in the cache", 0), (f"with {N_NEW} new tokens", N_NEW)):
        speeds: dict[int, list[float]] = {1: [], N_CLIENTS: []}
        for _ in range(rounds):
            for n in speeds:
                speed, longest = bench.clients(n, new)
                speeds[n].append(speed)
                gap = max(gap, longest)
        one, many = (median(speeds[n]) for n in speeds)
        found[f"tokens/s of one client, prompt {name}"] = one
        found[f"tokens/s of {N_CLIENTS} clients, prompt {name}"] = many
        found[f"ratio, prompt {name}"] = many / one
    found["longest gap between two tokens"] = gap
    return found | bench.deadlines(n_deadlines)


def main() -> int:
    """Measure, and print a table or a line of JSON."""
    parser = argparse.ArgumentParser(
        prog="bench.serving", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--shape", default="starcoderbase-1b", help="of the random weights")
    parser.add_argument("--type", default="q4_0", help="of the weights")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--deadlines", type=int, default=60, help="requests that have one")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        threads = machine.threads(options.threads)
        ops.set_n_threads(threads.n)
        found = measure(options.shape, options.type, options.rounds, options.deadlines)
    except StarcoderError as error:
        print(f"bench.serving: error: {error}", file=sys.stderr)
        return 2
    about = {"shape": options.shape, "type": options.type, "threads": threads.n, "isa": ops.isa()}
    rounded = {name: round(value, 3) for name, value in found.items()}
    if options.json:
        print(json.dumps(about | rounded))
        return 0
    print("  ".join(f"{name} {value}" for name, value in about.items()))
    for name, value in rounded.items():
        print(f"{value:10g}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
