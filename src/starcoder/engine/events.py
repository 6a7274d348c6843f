"""What the engine gives back: plain values, which no later step changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import StarcoderError
from starcoder.sampling.logprobs import TokenLogprobs

__all__ = ["EngineStats", "Event", "RequestStats"]


@dataclass(frozen=True, slots=True)
class RequestStats:
    """What one request has cost so far.

    Steps that it shares with other requests count in full for each of them.
    """

    prompt_tokens: int  # of the prompt, those that are in the cache
    cached_tokens: int  # of these, those that were there before
    decoded_tokens: int  # computed one at a time: every generated token but the last
    prompt_seconds: float = 0.0  # in the model, for the prompt
    decode_seconds: float = 0.0  # in the model, for single tokens
    sample_seconds: float = 0.0  # for choosing tokens
    skipped_tokens: int = 0  # of the prompt, those that there was no time for


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """What a step brought to one request."""

    id: int
    stats: RequestStats
    token: int | None = None
    finish_reason: str | None = (
        None  # "stop", "length", "time", "cancelled", "error"; None: goes on
    )
    error: StarcoderError | None = None
    logprobs: TokenLogprobs | None = None  # of the token
    logits: NDArray[np.float32] | None = None  # (n, n_vocab) of the next n tokens of the prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """How busy the engine is."""

    n_running: int  # requests that have a share of the key/value cache
    n_waiting: int  # requests that wait for one
    n_blocks: int  # of the cache
    n_free_blocks: int  # nothing is in them
    n_idle_blocks: int  # what is in them serves whoever comes with the same prefix
