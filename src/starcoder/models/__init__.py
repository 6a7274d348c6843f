"""Architectures: from a Checkpoint to something that turns batches into logits.

One file each, readable alone. A model never sees a file or a piece of text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starcoder.batch import Batch
from starcoder.checkpoint import Checkpoint
from starcoder.config import ModelConfig
from starcoder.errors import FormatError
from starcoder.kv_cache import KVCache
from starcoder.models.gpt_bigcode import GPTBigCode
from starcoder.ops import Graph

__all__ = ["Model", "Recorded", "build"]


class Model(Protocol):
    """What the engine needs of an architecture."""

    config: ModelConfig
    nbytes: int  # of the weights in memory

    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Logits (len(batch.logit_rows), n_vocab); keys and values go into the cache."""


class Recorded(Model, Protocol):
    """A model that runs as a graph."""

    graph: Graph


_ARCHITECTURES: dict[str, Callable[[Checkpoint], Recorded]] = {"gpt_bigcode": GPTBigCode}


def build(checkpoint: Checkpoint) -> Recorded:
    """The model of a checkpoint, its weights packed for this machine; it needs no file any more.

    Raises:
        FormatError: an unknown architecture, weights that do not fit it, or a file that changed
            meanwhile.
        MemoryLimitError: no memory for the weights.
    """
    name = checkpoint.config.architecture
    if name not in _ARCHITECTURES:
        where = f"{checkpoint.source}: architecture"
        raise FormatError(where, repr(name), " or ".join(_ARCHITECTURES))
    model = _ARCHITECTURES[name](checkpoint)
    checkpoint.check_files()
    return model
