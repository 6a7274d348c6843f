"""What the times of a session mean: speeds, shares of the machine's limits, ratios."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from starcoder.bench.runner import Task, Work
from starcoder.core.limits import Limits
from starcoder.core.tensor import TensorType

__all__ = ["Pairs", "Result", "Speed"]


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one kind of run, repeated: what it did, and the seconds of each. The median counts."""

    work: Work
    seconds: tuple[float, ...]

    @property
    def tps(self) -> float:
        """Tokens a second."""
        return self.work.tokens / statistics.median(self.seconds)

    @property
    def gmacs(self) -> float:
        """10^9 multiply-adds a second, of the matrices."""
        return self.tps * self.work.multiply_adds / self.work.tokens / 1e9

    @property
    def gbps(self) -> float:
        """10^9 bytes a second."""
        return self.tps * self.work.nbytes / self.work.tokens / 1e9

    @property
    def intensity(self) -> float:
        """Multiply-adds for a byte that is read."""
        return self.work.multiply_adds / self.work.nbytes


@dataclass(frozen=True, slots=True)
class Pairs:
    """Runs in turns, A B A B: how many times as fast A is, pair by pair."""

    ratios: tuple[float, ...]

    @classmethod
    def of(cls, ours: Speed, theirs: Speed) -> Pairs:
        """Of two speeds whose runs took turns."""
        seconds = zip(ours.seconds, theirs.seconds, strict=True)
        scale = ours.work.tokens / theirs.work.tokens
        return cls(tuple(scale * other / own for own, other in seconds))

    @property
    def median(self) -> float:
        """The middle one: above 1, A is faster."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest."""
        return min(self.ratios), max(self.ratios)

    def __str__(self) -> str:
        low, high = self.spread
        return f"ratio {self.median:.2f} ({low:.2f} to {high:.2f})"

    def as_json(self, name: str) -> dict[str, Any]:
        """Two figures under the name of what was run."""
        return {f"{name}_ratio": self.median, f"{name}_ratio_range": list(self.spread)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model's session."""

    name: str
    type_name: str  # as people say it: "q4_k_m"
    type: TensorType  # of most weights: it decides what limits a prompt
    task: Task
    weights_bytes: float  # that a token reads
    before: Limits  # of the machine, measured right before the runs
    after: Limits  # and right after them
    reads: tuple[float, ...]  # GB/s of memory before each decoding run, and after the last
    prompt: Speed
    decode: Speed
    alone: Speed | None = None  # decoding one sequence, where the task has several

    @property
    def limits(self) -> Limits:
        """What the machine could do in those minutes: of each peak the larger measurement.

        Multipliers keep their speed, but memory changes from one second to the next with what the
        neighbors do: of its readings it is the median.
        """
        return replace(self.before.larger(self.after), read_gbps=statistics.median(self.reads))

    @property
    def prompt_share(self) -> float:
        """Of the peak of this type's arithmetic, 0 to 1."""
        return min(1.0, self.prompt.gmacs / self.limits.gmacs(self.type))

    @property
    def decode_share(self) -> float:
        """Of the read bandwidth around each run, the median, 0 to 1.

        What fits into caches may be read faster than memory.
        """
        around = map(statistics.mean, pairwise(self.reads))
        read = [self.decode.work.nbytes / 1e9 / seconds for seconds in self.decode.seconds]
        shares = (found / limit for found, limit in zip(read, around, strict=True))
        return min(1.0, statistics.median(shares))

    def as_json(self) -> dict[str, Any]:
        """All figures under the names of docs/bench.md."""
        found: dict[str, Any] = {"model": self.name, "type": self.type_name}
        for kind, speed in (("prompt", self.prompt), ("decode", self.decode)):
            found[f"{kind}_tps"] = speed.tps
            found[f"{kind}_gmacs"] = speed.gmacs
            found[f"{kind}_gbps"] = speed.gbps
        found["prompt_limit_share"] = self.prompt_share
        found["decode_limit_share"] = self.decode_share
        found |= asdict(self.limits)
        found["weights_mb"] = self.weights_bytes / 1e6
        if self.alone is not None:
            found |= Pairs.of(self.decode, self.alone).as_json("batch")
            found["alone_tps"] = self.alone.tps
        return found
