"""What went wrong in a step, as users know errors."""

from __future__ import annotations

from starcoder.errors import MemoryLimitError, StarcoderError

__all__ = ["typed"]


def typed(error: Exception) -> StarcoderError:
    """An error of ours for any other."""
    if isinstance(error, StarcoderError):
        return error
    if isinstance(error, MemoryError):
        advice = "choose a smaller batch with -b or n_batch"
        return MemoryLimitError("step", "too little memory", "room for one request", advice)
    made = StarcoderError("step", f"{type(error).__name__}: {error}", "an answer of the model")
    made.__cause__ = error
    return made
