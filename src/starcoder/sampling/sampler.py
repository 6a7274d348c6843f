"""From logits to one token id: penalties, temperature, top-k, typical, top-p, min-p, a draw.

Each request has a `Sampler` with a generator of its own, so what one request draws never depends
on its neighbors. The steps and their order are those of ggml's `gpt_sample_top_k_top_p_repeat`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import StarcoderError
from starcoder.sampling.options import GenerationOptions

__all__ = ["Constraint", "LogitsError", "Sampler", "top_ids"]

_MAX_LOGIT = np.finfo(np.float32).max
_DAMAGED = "the model file is probably damaged: starcoder inspect FILE --check names the tensor"
_GROUP = 64  # logits in one group of `top_ids`; 16 to 256 take the same time


class LogitsError(StarcoderError):
    """The model gave logits that are infinite or not numbers: no token can be chosen."""


class Constraint(Protocol):
    """What may come next, beside what is likely: the end of a prompt said again, a grammar."""

    def allowed(self) -> NDArray[np.intp] | None:
        """The ids that may come next, ascending, at least one; None: all."""

    def take(self, token: int) -> None:
        """Go on behind a token that was chosen."""

    @property
    def is_over(self) -> bool:
        """Whether the text ends behind the last token."""

    @property
    def is_in_prompt(self) -> bool:
        """Whether the last token said the end of the prompt again, and nothing else."""


class Sampler:
    """Chooses tokens for one request."""

    def __init__(self, options: GenerationOptions) -> None:
        self.options = options
        self._random = np.random.Generator(np.random.PCG64(options.seed))
        self._biased = np.array([token for token, _ in options.logit_bias], np.intp)
        self._biases = np.array([bias for _, bias in options.logit_bias], np.float32)

    def sample(
        self,
        logits: NDArray[np.float32],
        tokens: Sequence[int],
        allowed: NDArray[np.intp] | None = None,
        banned: Collection[int] = (),
    ) -> int:
        """The next token.

        Args:
            logits: (n_vocab,); not changed.
            tokens: the ids so far, prompt included; the last `repeat_last_n` are penalized.
            allowed: the ids to choose among, at least one, ascending; by default all.
            banned: ids that are not chosen, unless there are no others.

        Raises:
            LogitsError: a logit is infinite or not a number.
        """
        # NaN is found too: argmax and argmin stop at it.
        if not all(math.isfinite(logits[i]) for i in (logits.argmax(), logits.argmin())):
            n_bad = int(np.count_nonzero(~np.isfinite(logits)))
            found = f"{n_bad} of {len(logits)} that are NaN or infinite"
            raise LogitsError("logits", found, "finite numbers", _DAMAGED)
        logits = self._penalize(logits, tokens)
        if banned:
            logits = logits.copy()
            logits[list(banned)] = -_MAX_LOGIT
        if allowed is not None:
            return int(allowed[self._draw(logits[allowed])])
        return self._draw(logits)

    def _draw(self, logits: NDArray[np.float32]) -> int:
        options = self.options
        if options.temperature == 0:
            return int(logits.argmax())
        ids, weights = _candidates(logits, options)
        sums = weights.cumsum()
        index = int(sums.searchsorted(self._random.random() * sums[-1], side="right"))
        return int(ids[min(index, len(ids) - 1)])

    def _penalize(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits with what was said lately made less likely, and biases added."""
        options = self.options
        if not options.shifts_logits:
            return logits
        logits = logits.copy()
        last_n = options.repeat_last_n
        if last_n:
            recent, counts = np.unique(
                np.asarray(tokens if last_n < 0 else tokens[-last_n:], np.int64), return_counts=True
            )
            seen, penalty = logits[recent], options.repeat_penalty
            with np.errstate(over="ignore"):  # what leaves the range of float32 stays at its end
                # A negative logit is multiplied: dividing it would make the token more likely.
                seen = np.where(seen > 0, seen / penalty, seen * penalty)
                seen -= (counts * options.frequency_penalty).astype(np.float32)
                seen -= np.float32(options.presence_penalty)
            logits[recent] = seen.clip(-_MAX_LOGIT, _MAX_LOGIT)
        with np.errstate(over="ignore"):
            logits[self._biased] += self._biases
        return logits.clip(-_MAX_LOGIT, _MAX_LOGIT)


# ---------------------------------------------------------------------------------------------


def _candidates(
    logits: NDArray[np.float32], options: GenerationOptions
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ids that may be drawn, most likely first, and their weights (unnormalized)."""
    ids, weights = _nucleus(logits, options)
    if options.min_p:
        n = int(np.count_nonzero(weights >= options.min_p * weights.max()))
        order = (-weights).argsort(kind="stable")[:n]
        ids, weights = ids[order], weights[order]
    return ids, weights


def _nucleus(
    logits: NDArray[np.float32], options: GenerationOptions
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    n, temperature, top_p = len(logits), options.temperature, options.top_p
    if 0 < options.top_k < n or options.typical_p < 1:
        ids = top_ids(logits, min(options.top_k or n, n))
        weights = _weights(logits[ids], temperature)
        if options.typical_p < 1:
            ids, weights = _typical(ids, weights, options.typical_p)
        return _cut(ids, weights, top_p, float(weights.sum()))
    weights = _weights(logits, temperature)
    if top_p == 1:
        return np.arange(n), weights
    # Nearly always the nucleus is small: sorting 49,152 logits takes 4 ms, these steps 0.6 ms.
    total = float(weights.sum())
    for k in (256, 4096, n):
        ids = top_ids(logits, min(k, n))
        if k >= n or float(weights[ids].sum()) >= top_p * total:
            break
    return _cut(ids, weights[ids], top_p, total)


def _typical(
    ids: NDArray[np.intp], weights: NDArray[np.float64], share: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The ids whose information is nearest to what is expected (Meister et al., 2022).

    The fewest that have this share; most likely first.
    """
    p = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(p > 0, -np.log(p), np.inf)
        expected = np.where(p > 0, p * information, 0).sum()
    order = np.abs(information - expected).argsort(kind="stable")
    n = int(p[order].cumsum().searchsorted(share)) + 1
    kept = np.sort(order[:n])
    return ids[kept], weights[kept]


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


def top_ids(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
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
