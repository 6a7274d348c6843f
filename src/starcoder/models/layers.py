"""The parts every model is made of, recorded once as a graph that every batch then runs through.

`Recorder` takes tensors from a Checkpoint by name, checks their shapes, and records what is done
with them. Nothing is computed here: how and by whom is `ops.Graph`'s affair.
"""

from __future__ import annotations

from starcoder import ops
from starcoder.checkpoint import Checkpoint
from starcoder.tensor import TensorType

__all__ = ["Recorder"]


class Recorder:
    """Records the steps of a model, on weights of a checkpoint.

    A value is an int: the result of a step, n rows of floats, which later steps take.

    Attributes:
        graph: what was recorded.
        nbytes: bytes of the matrices, packed.

    Raises:
        FormatError: the checkpoint lacks a tensor or has one of another shape.
        MemoryLimitError: no memory for the weights.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.graph = ops.Graph()
        self.nbytes = 0
        self._checkpoint = checkpoint
        self._matrices: dict[str, ops.Matrix] = {}

    def embed(self) -> int:
        """(n, dim): the rows of the tokens, plus those of their positions."""
        config = self._checkpoint.config
        tokens = self._matrix("token_embd.weight", config.n_vocab, config.dim)
        positions = self._checkpoint.take("position_embd.weight", config.n_ctx, config.dim)
        if positions.type is not TensorType.F32:
            return self.graph.embed(tokens, ops.dequantize(positions))
        return self.graph.embed(tokens, positions.array())

    def norm(self, name: str, x: int) -> int:
        """(n, dim): x scaled to mean 0 and variance 1, times weight, plus bias."""
        config = self._checkpoint.config
        weight = self._checkpoint.take(f"{name}.weight", config.dim).array()
        bias = self._checkpoint.take(f"{name}.bias", config.dim).array()
        return self.graph.layer_norm(x, weight, bias, config.norm_eps)

    def linear(
        self,
        name: str,
        x: int,
        shape: tuple[int, int],
        *,
        activation: str | None = None,
        residual: int | None = None,
    ) -> int:
        """(n, m): activation(x (n, k) @ weight.T + bias) + residual; `shape` is (m, k)."""
        weight = self._matrix(f"{name}.weight", *shape)
        bias = self._checkpoint.take(f"{name}.bias", shape[0]).array()
        return self.graph.linear(weight, x, bias, ops.ACTIVATIONS[activation], residual)

    def attention(self, name: str, qkv: int) -> int:
        """(n, dim): stores the keys and values of qkv in the next layer's cache, attends to all.

        In bf16, twice as fast, unless the weights `name` that made qkv are F32 or F16: those are
        computed without loss.
        """
        config = self._checkpoint.config
        kind = self._checkpoint.tensors[f"{name}.weight"].type
        exact = kind in (TensorType.F32, TensorType.F16)
        return self.graph.attention(qkv, config.n_heads, config.n_kv_heads, not exact)

    def wanted(self, x: int) -> int:
        """(r, dim): the rows whose logits are asked for; nothing else is computed from here on."""
        return self.graph.select(x)

    def logits(self, x: int) -> int:
        """(r, n_vocab): by `output.weight`, or the embedding where the file has none."""
        config = self._checkpoint.config
        own = "output.weight" in self._checkpoint.tensors
        name = "output.weight" if own else "token_embd.weight"
        weight = self._matrix(name, config.n_vocab, config.dim)
        return self.graph.linear(weight, x, None, ops.ACTIVATIONS[None], None)

    def _matrix(self, name: str, n_rows: int, n_cols: int) -> ops.Matrix:
        if name not in self._matrices:
            self._matrices[name] = ops.pack(self._checkpoint.take(name, n_rows, n_cols))
            self.nbytes += self._matrices[name].nbytes
        return self._matrices[name]
