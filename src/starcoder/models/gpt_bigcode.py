"""GPTBigCode: SantaCoder, StarCoder, StarCoderBase and their fine-tunes.

A GPT-2 with one head of keys and values that all query heads share (multi-query attention):

    x = token embedding + position embedding                      (n, dim)
    for each layer:
        x = x + output(attention(qkv(norm(x))))
        x = x + down(gelu(up(norm(x))))
    logits = norm(x) @ embedding.T                                (r, n_vocab), of `logit_rows`
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starcoder.batch import Batch
from starcoder.checkpoint import Checkpoint
from starcoder.kv_cache import KVCache
from starcoder.models.layers import Recorder

__all__ = ["GPTBigCode"]


class GPTBigCode:
    """The model: a Batch of token ids to logits.

    Raises:
        FormatError: the checkpoint lacks a tensor or has one of another shape.
        MemoryLimitError: no memory for the weights.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = config = checkpoint.config
        record = Recorder(checkpoint)
        x = record.embed()
        for index in range(config.n_layers):
            x = self._layer(record, index, x)
        record.logits(record.norm("output_norm", x))
        self.nbytes = record.nbytes
        self.graph = record.graph

    def _layer(self, record: Recorder, index: int, x: int) -> int:
        """One block of attention and feed-forward."""
        config, name = self.config, f"blk.{index}"
        dim, hidden_dim = config.dim, config.hidden_dim
        qkv_dim = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        qkv = record.linear(f"{name}.attn_qkv", record.norm(f"{name}.attn_norm", x), (qkv_dim, dim))
        mixed = record.attention(f"{name}.attn_qkv", qkv)
        if index == config.n_layers - 1:  # no later layer attends to the other rows
            x, mixed = record.logit_rows(x), record.logit_rows(mixed)
        x = record.linear(f"{name}.attn_output", mixed, (dim, dim), residual=x)
        hidden = record.linear(
            f"{name}.ffn_up",
            record.norm(f"{name}.ffn_norm", x),
            (hidden_dim, dim),
            activation=config.activation,
        )
        return record.linear(f"{name}.ffn_down", hidden, (dim, hidden_dim), residual=x)

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
