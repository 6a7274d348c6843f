"""Log probabilities of a token that was chosen, and of the likeliest others.

They are the model's own: of its logits before penalties, biases, temperature and whatever may not
be chosen, as OpenAI, vLLM and llama.cpp give them. So they do not depend on any other option, and
tell how sure the model is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starcoder.sampling.sampler import top_ids

__all__ = ["TokenLogprobs"]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, by the model: natural logarithms, at most 0.

    Where a token is hardly possible they may be as small as -1e38; they are always finite.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # ids and theirs, likeliest first, of equal ones the lowest

    @classmethod
    def of(cls, logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprobs:
        """Those of a token and of the `n_top` likeliest, by finite logits (n_vocab,)."""
        shifted = logits.astype(np.float64) - float(logits.max())
        with np.errstate(under="ignore"):
            log_sum = float(np.log(np.exp(shifted).sum()))
        ids = top_ids(logits, min(n_top, len(logits))).tolist() if n_top else []
        top = tuple((i, float(shifted[i]) - log_sum) for i in ids)
        return cls(token, float(shifted[token]) - log_sum, top)
