"""What comes back from a model: a Piece at a time while it streams, a Completion at the end."""

from __future__ import annotations

from dataclasses import dataclass

from starcoder.engine import RequestStats
from starcoder.sampling.logprobs import TokenLogprobs

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
            prompt_per_second=(stats.prompt_tokens - stats.cached_tokens) / prompt
            if prompt
            else 0.0,
            predict_per_second=stats.decoded_tokens / decode if decode else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """The next bit of a stream: one token, and the text that can be shown with it (maybe none).

    That is whole characters, and never the beginning of a stop string.
    """

    text: str
    token: int | None  # None: one that ends the answer, or says the prompt's end again
    finish_reason: str | None  # None: more to come
    logprobs: TokenLogprobs | None = None  # where they were asked for and there is a token


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one prompt.

    `finish_reason` is "stop" (the model ended its text, or said a stop string), "length"
    (`max_tokens` reached or the context full), "time" (`max_time_ms` or `max_prompt_ms` was over;
    the text is whole lines) or "cancelled". The token that ends a text is in none of these values.
    A stop string is not in the text, but what it was said with is among the tokens, and so is the
    whole token of which the prompt had the beginning.
    """

    text: str
    tokens: tuple[int, ...]  # what was generated
    prompt_tokens: int  # how many ids the prompt has
    cached_tokens: int  # of these, how many were computed before
    finish_reason: str
    timings: Timings
    logprobs: tuple[TokenLogprobs, ...] | None = None  # one for each token; None: not asked for
