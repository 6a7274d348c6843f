"""From logits to one token id: repeat penalty, temperature, top-k, top-p, a draw. Numpy only.

Each request has a `Sampler` with a generator of its own, so what one request draws never depends
on its neighbors. The steps and their order are those of ggml's `gpt_sample_top_k_top_p_repeat`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import StarcoderError
from starcoder.sampling.options import GenerationOptions

__all__ = ["LogitsError", "Sampler"]

_MAX_LOGIT = np.finfo(np.float32).max
_DAMAGED = "the model file is probably damaged: starcoder inspect FILE --check names the tensor"
_GROUP = 64  # logits in one group of `_top`; 16 to 256 take the same time


class LogitsError(StarcoderError):
    """The model gave logits that are infinite or not numbers: no token can be chosen."""


class Sampler:
    """Chooses tokens for one request."""

    def __init__(self, options: GenerationOptions) -> None:
        self.options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))

    def sample(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: (n_vocab,); not changed.
            tokens: the ids so far, prompt included; the last `repeat_last_n` are penalized.

        Raises:
            LogitsError: a logit is infinite or not a number.
        """
        # NaN is found too: argmax and argmin stop at it.
        if not all(math.isfinite(logits[i]) for i in (logits.argmax(), logits.argmin())):
            n_bad = int(np.count_nonzero(~np.isfinite(logits)))
            found = f"{n_bad} of {len(logits)} that are NaN or infinite"
            raise LogitsError("logits", found, "finite numbers", _DAMAGED)
        options = self.options
        logits = self._penalize(logits, tokens)
        if options.temperature == 0:
            return int(logits.argmax())
        ids, weights = _nucleus(logits, options.temperature, options.top_k, options.top_p)
        sums = weights.cumsum()
        index = int(sums.searchsorted(self._random.random() * sums[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    def _penalize(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        last_n, penalty = self.options.repeat_last_n, self.options.repeat_penalty
        if penalty == 1 or last_n == 0:
            return logits
        recent = np.unique(np.asarray(tokens if last_n < 0 else tokens[-last_n:], np.int64))
        seen = logits[recent]
        logits = logits.copy()
        with np.errstate(over="ignore"):  # what leaves the range of float32 stays at its end
            # A negative logit is multiplied: dividing it would make the token more likely.
            penalized = np.where(seen > 0, seen / penalty, seen * penalty)
        logits[recent] = penalized.clip(-_MAX_LOGIT, _MAX_LOGIT)
        return logits


# ---------------------------------------------------------------------------------------------


def _nucleus(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ids that may be drawn, most likely first, and their weights (unnormalized)."""
    n = len(logits)
    if 0 < top_k < n:
        ids = _top(logits, top_k)
        weights = _weights(logits[ids], temperature)
        return _cut(ids, weights, top_p, float(weights.sum()))
    weights = _weights(logits, temperature)
    if top_p == 1:
        return np.arange(n), weights
    # Nearly always the nucleus is small: sorting 49,152 logits takes 4 ms, these steps 0.6 ms.
    total = float(weights.sum())
    for k in (256, 4096, n):
        ids = _top(logits, min(k, n))
        if k >= n or float(weights[ids].sum()) >= top_p * total:
            break
    return _cut(ids, weights[ids], top_p, total)


def _weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Probabilities up to a common factor. The largest is 1, so nothing overflows."""
    with np.errstate(over="ignore", under="ignore"):
        scaled = (logits.astype(np.float64) - float(logits.max())) / temperature
        return np.exp(scaled)


def _cut(
    ids: NDArray[np.intp], weights: NDArray[np.float64], top_p: float, total: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The fewest leading ids that have the share `top_p` of `total`; at least one."""
    if top_p == 1:
        return ids, weights
    n = int(weights.cumsum().searchsorted(top_p * total)) + 1
    return ids[:n], weights[:n]


def _top(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """The ids of the `k` largest logits, largest first, of equal ones the lowest id first.

    A bound is found that at least k logits reach, and few more do. For small k the k-th largest
    of the groups' maxima serves: one pass, where a partition of all logits takes several.
    """
    n, n_groups = len(logits), len(logits) // _GROUP
    if k == n:
        ids = np.arange(n)
    else:
        pool = logits
        if k <= n_groups:
            pool = np.maximum.reduce(logits[: n_groups * _GROUP].reshape(_GROUP, n_groups))
        ids = (logits >= np.partition(pool, len(pool) - k)[len(pool) - k]).nonzero()[0]
    return ids[(-logits[ids]).argsort(kind="stable")[:k]]
