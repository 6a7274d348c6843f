"""What a step takes, in seconds: learned while running, so that steps can be cut to a time.

A step multiplies each weight with every token that it has, and each token looks at all positions
before it. So its time is close to a line in four numbers: one, for reading the weights; the tokens
up to `FEW`, which ride along with that; the tokens above, which cost arithmetic; and the pairs of
a token and a position. The four prices are fitted to the steps that were seen, the latest weigh
most, for machines are shared. Answers never depend on any of this: only when they come does.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["FEW", "CostModel", "work_of"]

FEW = 16  # tokens that one reading of the weights serves at nearly the price of one
_KEEP = 0.98  # of the weight of a step when the next one was seen
_FLOOR = 1e-3  # weight of what was believed of a price, beside what was seen of it
_MOST = 64  # steps between two fits
_SUDDEN = 4.0  # times what was expected: the machine was elsewhere, which says little
# What is believed before any step was seen: how fast weights are read, and of the time that takes
# the share for a token that rides along, and for one of those above. A slow laptop's.
_BYTES_PER_SECOND, _RIDE, _ARITHMETIC = 20e9, 0.02, 0.2

Work = tuple[float, float, float, float]


def work_of(chunks: Iterable[tuple[int, int]]) -> Work:
    """What a step has to do.

    Args:
        chunks: of each sequence the tokens that it brings, and the position of its first.
    """
    n, pairs = 0, 0.0
    for n_tokens, first in chunks:
        n += n_tokens
        pairs += n_tokens * (first + (n_tokens + 1) / 2)
    return 1.0, float(min(n, FEW)), float(max(n - FEW, 0)), pairs / 1024


class CostModel:
    """Prices of the four kinds of work, in seconds.

    Args:
        nbytes: of the weights, for a guess before any step was seen.
    """

    def __init__(self, nbytes: int = 0) -> None:
        read = nbytes / _BYTES_PER_SECOND
        self.prices = (read, read * _RIDE, read * _ARITHMETIC, 0.0)
        self._seen: list[tuple[Work, float]] = []  # since the last fit
        self._gram = np.zeros((4, 4))  # of the work that was seen
        self._moment = np.zeros(4)  # of that work and its seconds

    def saw(self, work: Work, seconds: float) -> None:
        """Learn from a step. It is cheap; what was seen is fitted when it is asked for."""
        self._seen.append((work, seconds))
        if len(self._seen) == _MOST:
            self._fit()

    def seconds(self, work: Work) -> float:
        """What a step is expected to take; 0 before any was seen."""
        if self._seen:
            self._fit()
        a, b, c, d = self.prices
        return a * work[0] + b * work[1] + c * work[2] + d * work[3]

    def most_tokens(
        self, others: Iterable[tuple[int, int]], first: int, limit: float, most: int
    ) -> int:
        """How many tokens of one more sequence a step of `limit` seconds has room for.

        Args:
            others: what else is in the step, as for `work_of`.
            first: the position of its first token.
            limit: seconds.
            most: as many are enough.
        """
        others = list(others)
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(work_of([*others, (middle, first)])) <= limit:
                low = middle
            else:
                high = middle - 1
        return low

    def _fit(self) -> None:
        """Least squares with no price below zero: those that would be are left out in turn.

        What the steps that were seen do not say of a price stays as it was.
        """
        old = np.array(self.prices)
        for work, seconds in self._seen:
            expected = float(old @ np.array(work))
            if expected:
                seconds = min(seconds, _SUDDEN * expected)
            # Errors count in proportion: a step of 1 ms is to be known as well as one of a second.
            x = np.array(work) / max(seconds, 1e-6)
            self._gram = _KEEP * self._gram + np.outer(x, x)
            self._moment = _KEEP * self._moment + x
        self._seen.clear()
        scale = np.sqrt(np.maximum(np.diag(self._gram), 1e-12))
        gram = self._gram / np.outer(scale, scale) + _FLOOR * np.eye(4)
        moment = self._moment / scale + _FLOOR * scale * old
        use = np.ones(4, bool)
        while True:
            prices = np.zeros(4)
            prices[use] = np.linalg.solve(gram[np.ix_(use, use)], moment[use])
            if (prices >= 0).all():
                break
            use &= prices >= 0
        a, b, c, d = (prices / scale).tolist()
        self.prices = (a, b, c, d)
