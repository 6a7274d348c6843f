"""What comes back from a model: a Piece at a time while it streams, a Completion at the end."""

from __future__ import annotations

from dataclasses import dataclass

from starcoder.engine import RequestStats

__all__ = ["Completion", "Piece", "Timings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one request went.

    Steps that a request shares with others count in full for each of them.
    """

    prompt_ms: float  # forward passes over the prompt
    predict_ms: float  # forward passes over single tokens, one for each but the first
    sample_ms: float  # choosing tokens
    prompt_per_second: float  # tokens; 0 where there was nothing to measure
    predict_per_second: float

    @classmethod
    def of(cls, stats: RequestStats) -> Timings:
        """The times and speeds of a request so far."""
        prompt, decode = stats.prompt_seconds, stats.decode_seconds
        return cls(
            prompt_ms=prompt * 1e3,
            predict_ms=decode * 1e3,
            sample_ms=stats.sample_seconds * 1e3,
            prompt_per_second=stats.prompt_tokens / prompt if prompt else 0.0,
            predict_per_second=stats.decoded_tokens / decode if decode else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bit of a stream: one token, and the characters it completes (maybe none)."""

    text: str  # whole characters only
    token: int | None  # None: the end came without a token
    finish_reason: str | None  # None: more to come


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one prompt.

    `finish_reason` is "stop" (the model ended its text; the end token is not part of it),
    "length" (`max_tokens` reached or the context full) or "cancelled".
    """

    text: str
    tokens: tuple[int, ...]  # the ids of the text
    prompt_tokens: int  # how many ids the prompt has
    finish_reason: str
    timings: Timings
