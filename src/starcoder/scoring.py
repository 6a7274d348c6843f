"""Scoring: the logits of a text that is there, in place of one that is to come."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from starcoder.engine import Loop
from starcoder.errors import MemoryLimitError, StarcoderError
from starcoder.sampling.options import GenerationOptions

__all__ = ["logits"]


def logits(loop: Loop, ids: Ids[int], n_vocab: int) -> NDArray[np.float32]:
    """Scores (n, n_vocab) of the token that follows each of `ids` (n); errors as `LLM.logits`."""
    request = loop.submit(ids, GenerationOptions(), wants_logits=True)
    events = request.outbox.events
    try:
        out = np.empty((len(ids), n_vocab), np.float32)
        n_done = i = 0
        while n_done < len(ids):
            event = request.wait(i)
            if event is None or event.logits is None:
                raise _closed() if event is None or event.error is None else event.error
            out[n_done : n_done + len(event.logits)] = event.logits
            n_done += len(event.logits)
            events[i] = replace(event, logits=None)  # 100 MB, for StarCoder's vocabulary
            i += 1
    except MemoryError:
        advice = "use a smaller model, type or context"
        raise MemoryLimitError("logits", "not enough memory", "", advice) from None
    finally:
        request.cancel()
    return out


def _closed() -> StarcoderError:
    return StarcoderError("logits", "a closed model", "an open one", "make a new LLM")
