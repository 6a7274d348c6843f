"""The parts every model is made of, recorded once as a graph that every batch then runs through.

`Recorder` takes tensors from a Checkpoint by name, checks that their shapes are those that the
architecture declares, and records what is done with them. Nothing is computed here: how and by
whom is `ops.Graph`'s affair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.model.architecture import Architecture, Role
from starcoder.model.checkpoint import Checkpoint

__all__ = ["Recorder"]


class Recorder:
    """Records the steps of a model, on weights of a checkpoint.

    A value is an int: the result of a step, n rows of floats, which later steps take.

    Attributes:
        config: that of the checkpoint.
        graph: what was recorded.
        nbytes: bytes of the matrices, packed.

    Raises:
        FormatError: the checkpoint lacks a tensor or has one of another shape.
        MemoryLimitError: no memory for the weights.
    """

    def __init__(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        self.config = checkpoint.config
        self.graph = ops.Graph()
        self.nbytes = 0
        self._checkpoint = checkpoint
        self._architecture = architecture
        self._specs = architecture.specs(self.config.n_layers)
        self._matrices: dict[str, ops.Matrix] = {}

    def embed(self) -> int:
        """(n, dim): the embeddings of the tokens, plus those of their positions if it has such."""
        tokens = self._matrix(self._architecture.embedding)
        added = [name for name, spec in self._specs.items() if spec.role is Role.POSITIONS]
        return self.graph.embed(tokens, _floats(self._take(added[0])) if added else None)

    def norm(self, name: str, x: int) -> int:
        """(n, dim): x scaled to mean 0 and variance 1, times weight, plus bias."""
        weight, bias = (self._take(f"{name}.{part}").array() for part in ("weight", "bias"))
        return self.graph.layer_norm(x, weight, bias, self.config.norm_eps)

    def rms_norm(self, name: str, x: int) -> int:
        """(n, dim): x scaled to mean square 1, times weight."""
        return self.graph.rms_norm(x, self._take(f"{name}.weight").array(), self.config.norm_eps)

    def linear(
        self, name: str, x: int, *, activation: str | None = None, residual: int | None = None
    ) -> int:
        """(n, m): activation(x (n, k) @ weight.T + bias) + residual; the bias if it has one."""
        weight = self._matrix(f"{name}.weight")
        bias = f"{name}.bias"
        added = self._take(bias).array() if bias in self._specs else None
        return self.graph.linear(weight, x, added, ops.ACTIVATIONS[activation], residual)

    def gated(self, gate: int, up: int, *, activation: str = "silu") -> int:
        """(n, m): activation(gate) * up."""
        return self.graph.gated(gate, up, ops.ACTIVATIONS[activation])

    def concat(self, queries: int, keys: int, values: int) -> int:
        """(n, qkv_dim): what three matrices made, side by side as `attention` takes it."""
        return self.graph.concat(queries, keys, values)

    def attention(self, qkv: int, *names: str) -> int:
        """(n, dim): stores the keys and values of qkv in the next layer's cache, attends to all.

        In bf16, twice as fast, unless all weights `names` that made qkv are F32 or F16: those are
        computed without loss.
        """
        kinds = {self._checkpoint.tensors[f"{name}.weight"].type for name in names}
        exact = kinds <= {TensorType.F32, TensorType.F16}
        return self.graph.attention(qkv, self.config.n_heads, self.config.n_kv_heads, not exact)

    def logit_rows(self, x: int) -> int:
        """(r, dim): the batch's `logit_rows` of x; no other rows are computed from here on."""
        return self.graph.select(x)

    def logits(self, x: int) -> int:
        """(r, n_vocab): by the output matrix, or the embedding where the file has none."""
        weight = self._matrix(self._architecture.output(self._checkpoint.tensors))
        return self.graph.linear(weight, x, None, ops.ACTIVATIONS[None], None)

    def _matrix(self, name: str) -> ops.Matrix:
        if name not in self._matrices:
            self._matrices[name] = ops.pack(self._take(name))
            self.nbytes += self._matrices[name].nbytes
        return self._matrices[name]

    def _take(self, name: str) -> Tensor:
        return self._checkpoint.take(name, *self._specs[name].shape(self.config))


def _floats(tensor: Tensor) -> NDArray[np.float32]:
    """A tensor as floats, which positions of a GGUF file may not be."""
    return tensor.array() if tensor.type is TensorType.F32 else ops.dequantize(tensor)
