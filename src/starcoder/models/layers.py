"""The parts every model is made of: weights taken from a Checkpoint, and one call each.

A part takes its tensors by name and checks their shapes; how they are multiplied is `ops`'.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starcoder import ops
from starcoder.batch import Batch
from starcoder.checkpoint import Checkpoint
from starcoder.kv_cache import KVCache

__all__ = ["Attention", "Embedding", "LayerNorm", "Linear"]

Floats = NDArray[np.float32]


class Linear:
    """y (n, m) = activation(x (n, k) @ weight.T + bias) + residual."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        n_inputs: int,
        n_outputs: int,
        *,
        activation: str | None = None,
    ) -> None:
        self.weight = ops.pack(checkpoint.take(f"{name}.weight", n_outputs, n_inputs))
        self.bias = checkpoint.take(f"{name}.bias", n_outputs).array()
        self.activation = activation
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Floats, residual: Floats | None = None) -> Floats:
        """y (n, m) from x (n, k)."""
        return ops.linear(x, self.weight, self.bias, activation=self.activation, residual=residual)


class LayerNorm:
    """y (n, dim) = x scaled to mean 0 and variance 1, times weight, plus bias."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        config = checkpoint.config
        self.weight = checkpoint.take(f"{name}.weight", config.dim).array()
        self.bias = checkpoint.take(f"{name}.bias", config.dim).array()
        self.eps = config.norm_eps

    def __call__(self, x: Floats) -> Floats:
        """y (n, dim) from x (n, dim)."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)


class Embedding:
    """Token ids to rows (n, dim), and rows to logits (n, n_vocab).

    Where the file has no `output.weight`, one matrix serves for both.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        shape = checkpoint.config.n_vocab, checkpoint.config.dim
        self.weight = ops.pack(checkpoint.take("token_embd.weight", *shape))
        self.output = self.weight
        if "output.weight" in checkpoint.tensors:
            self.output = ops.pack(checkpoint.take("output.weight", *shape))
        matrices = {id(w): w for w in (self.weight, self.output)}
        self.nbytes = sum(w.nbytes for w in matrices.values())

    def __call__(self, tokens: NDArray[np.int32]) -> Floats:
        """(n, dim) from token ids (n)."""
        return ops.embed(tokens, self.weight)

    def logits(self, x: Floats) -> Floats:
        """(n, n_vocab) from x (n, dim)."""
        return ops.linear(x, self.output)


class Attention:
    """y (n, dim) from qkv (n, (n_heads + 2 n_kv_heads) head_dim), through layer `index`'s cache."""

    def __init__(self, checkpoint: Checkpoint, index: int) -> None:
        self.n_heads, self.index = checkpoint.config.n_heads, index

    def __call__(self, qkv: Floats, batch: Batch, cache: KVCache) -> Floats:
        """Stores the new keys and values, then attends to all of them."""
        keys, values = cache.keys[self.index], cache.values[self.index]
        ops.store_kv(qkv, self.n_heads, batch, keys, values)
        return ops.attention(qkv, self.n_heads, batch, keys, values)
