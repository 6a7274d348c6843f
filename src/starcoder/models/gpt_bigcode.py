"""GPTBigCode: SantaCoder, StarCoder, StarCoderBase and their fine-tunes.

A GPT-2 with one head of keys and values that all query heads share (multi-query attention):

    x = token embedding + position embedding                      (n, dim)
    for each layer:
        x = x + output(attention(qkv(norm(x))))
        x = x + down(gelu(up(norm(x))))
    logits = norm(x) @ embedding.T, for the rows that are asked for
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starcoder.batch import Batch
from starcoder.checkpoint import Checkpoint
from starcoder.kv_cache import KVCache
from starcoder.models.layers import Attention, Embedding, LayerNorm, Linear

__all__ = ["GPTBigCode"]

Floats = NDArray[np.float32]


class Layer:
    """One block of attention and feed-forward."""

    def __init__(self, checkpoint: Checkpoint, index: int) -> None:
        config, name = checkpoint.config, f"blk.{index}"
        dim, hidden_dim = config.dim, config.hidden_dim
        qkv_dim = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
        self.attn_norm = LayerNorm(checkpoint, f"{name}.attn_norm")
        self.attn_qkv = Linear(checkpoint, f"{name}.attn_qkv", dim, qkv_dim)
        self.attention = Attention(checkpoint, index)
        self.attn_output = Linear(checkpoint, f"{name}.attn_output", dim, dim)
        self.ffn_norm = LayerNorm(checkpoint, f"{name}.ffn_norm")
        self.ffn_up = Linear(
            checkpoint, f"{name}.ffn_up", dim, hidden_dim, activation=config.activation
        )
        self.ffn_down = Linear(checkpoint, f"{name}.ffn_down", hidden_dim, dim)
        linears = self.attn_qkv, self.attn_output, self.ffn_up, self.ffn_down
        self.nbytes = sum(linear.nbytes for linear in linears)

    def __call__(self, x: Floats, batch: Batch, cache: KVCache) -> Floats:
        qkv = self.attn_qkv(self.attn_norm(x))
        x = self.attn_output(self.attention(qkv, batch, cache), residual=x)
        return self.ffn_down(self.ffn_up(self.ffn_norm(x)), residual=x)


class GPTBigCode:
    """The model: a Batch of token ids to logits.

    Raises:
        FormatError: the checkpoint lacks a tensor or has one of another shape.
        MemoryLimitError: no memory for the weights.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = config = checkpoint.config
        self.token_embd = Embedding(checkpoint)
        positions = checkpoint.take("position_embd.weight", config.n_ctx, config.dim)
        self.position_embd = positions.array()  # stays in the file: a row is read now and then
        self.layers = [Layer(checkpoint, index) for index in range(config.n_layers)]
        self.output_norm = LayerNorm(checkpoint, "output_norm")
        self.nbytes = self.token_embd.nbytes + sum(layer.nbytes for layer in self.layers)

    def forward(self, batch: Batch, cache: KVCache) -> Floats:
        """Logits (r, n_vocab) of the batch's `logit_rows`; keys and values go into the cache."""
        x = self.token_embd(batch.tokens)  # (n, dim)
        with np.errstate(all="ignore"):  # of damaged weights; the sampler finds what they lead to
            x += self.position_embd[batch.positions]
        for layer in self.layers:
            x = layer(x, batch, cache)
        if not len(batch.logit_rows):
            return np.empty((0, self.config.n_vocab), np.float32)
        return self.token_embd.logits(self.output_norm(x[batch.logit_rows]))
