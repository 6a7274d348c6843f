"""Models: from a Checkpoint to something that turns batches into logits.

An architecture is one file, readable alone, and one row here. A model never sees a file or a piece
of text.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starcoder.core.batch import Batch
from starcoder.errors import FormatError
from starcoder.model.architecture import Architecture
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.config import ModelConfig
from starcoder.model.gpt_bigcode import GPT_BIGCODE
from starcoder.model.kv_cache import KVCache
from starcoder.model.layers import Recorder

__all__ = ["ARCHITECTURES", "Model", "Recorded", "build", "find"]

ARCHITECTURES: dict[str, Architecture] = {
    GPT_BIGCODE.name: GPT_BIGCODE,
}


class Model(Protocol):
    """What the engine needs of a model."""

    config: ModelConfig
    nbytes: int  # of the weights in memory

    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Logits (len(batch.logit_rows), n_vocab); keys and values go into the cache."""


class Recorded:
    """A model that runs as a graph: a Batch of token ids to logits."""

    def __init__(self, config: ModelConfig, recorder: Recorder) -> None:
        self.config = config
        self.nbytes = recorder.nbytes
        self.graph = recorder.graph

    def forward(self, batch: Batch, cache: KVCache) -> NDArray[np.float32]:
        """Logits (r, n_vocab) of the batch's `logit_rows`; keys and values go into the cache."""
        logits = np.empty((len(batch.logit_rows), self.config.n_vocab), np.float32)
        self.graph.run(
            batch.tokens,
            batch.positions,
            batch.row_starts,
            batch.block_tables,
            batch.logit_rows,
            cache.keys,
            cache.values,
            logits,
        )
        return logits


def find(checkpoint: Checkpoint) -> Architecture:
    """The architecture of a checkpoint.

    Raises:
        FormatError: it is not one of ours.
    """
    name = checkpoint.config.architecture
    if name not in ARCHITECTURES:
        where = f"{checkpoint.source}: architecture"
        raise FormatError(where, repr(name), " or ".join(ARCHITECTURES))
    return ARCHITECTURES[name]


def build(checkpoint: Checkpoint) -> Recorded:
    """The model of a checkpoint, its weights packed for this machine; it needs no file any more.

    Raises:
        FormatError: an unknown architecture, weights that do not fit it, or a file that changed
            meanwhile.
        MemoryLimitError: no memory for the weights.
    """
    architecture = find(checkpoint)
    recorder = Recorder(checkpoint, architecture)
    architecture.record(recorder)
    checkpoint.check_files()
    return Recorded(checkpoint.config, recorder)
