"""The slow twin of `ops.Graph`: the same steps, one call of an operation after the other.

Which operations is the caller's choice: those of `reference` give what numpy makes of a model,
those of `helpers.operations` the very bits that the graph must give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starcoder.core.batch import Batch

__all__ = ["Graph"]

Floats = NDArray[np.float32]
Step = Callable[["_Run"], Floats]


class _Run:
    """The batch, the cache of every layer, and the values so far."""

    def __init__(self, batch: Batch, keys: NDArray[np.uint16], values: NDArray[np.uint16]) -> None:
        self.batch = batch
        self.keys, self.values = keys, values
        self.results: list[Floats] = []


class Graph:
    """Records steps as `ops.Graph` does.

    Args:
        operations: a module with the operations of `reference`.
        activations: the names of the activations, by their numbers.
    """

    def __init__(self, operations: Any, activations: dict[int, str | None]) -> None:
        self._operations, self._activations = operations, activations
        self._steps: list[Step] = []
        self._n_layers = 0

    def embed(self, w: Any, positions: Floats | None) -> int:
        """(n, dim): rows of w for the tokens, plus rows of positions, if there are any."""

        def step(run: _Run) -> Floats:
            x: Floats = self._operations.embed(run.batch.tokens, w)
            return x if positions is None else x + positions[run.batch.positions]

        return self._record(step)

    def layer_norm(self, x: int, weight: Floats, bias: Floats, eps: float) -> int:
        """(n, dim): see `reference.layer_norm`."""
        return self._record(
            lambda run: self._operations.layer_norm(run.results[x], weight, bias, eps)
        )

    def rms_norm(self, x: int, weight: Floats, eps: float) -> int:
        """(n, dim): see `reference.rms_norm`."""
        return self._record(lambda run: self._operations.rms_norm(run.results[x], weight, eps))

    def gated(self, gate: int, up: int, activation: int) -> int:
        """(n, m): see `reference.gated`."""
        name = self._activations[activation]
        return self._record(
            lambda run: self._operations.gated(run.results[gate], run.results[up], name)
        )

    def concat(self, queries: int, keys: int, values: int) -> int:
        """(n, queries | keys | values)."""
        parts = queries, keys, values
        return self._record(lambda run: np.hstack([run.results[part] for part in parts]))

    def rotate(self, qkv: int, n_heads: int, n_kv_heads: int, table: Floats) -> int:
        """(n, queries | keys | values): see `reference.rotate`."""
        return self._record(
            lambda run: self._operations.rotate(
                run.results[qkv], n_heads, n_kv_heads, run.batch, table
            )
        )

    def linear(
        self, w: Any, x: int, bias: Floats | None, activation: int, residual: int | None
    ) -> int:
        """(n, m): see `reference.linear`."""

        def step(run: _Run) -> Floats:
            added = None if residual is None else run.results[residual]
            options = {"activation": self._activations[activation], "residual": added}
            y: Floats = self._operations.linear(run.results[x], w, bias, **options)
            return y

        return self._record(step)

    def attention(self, qkv: int, n_heads: int, n_kv_heads: int, bf16: bool) -> int:
        """(n, dim): stores keys and values in the next layer's cache, attends to all of them."""
        layer, dtype = self._n_layers, np.uint16 if bf16 else np.float16
        self._n_layers += 1

        def step(run: _Run) -> Floats:
            # A copy in one piece, (n_blocks, n_kv_heads, ...), as `ops` wants it.
            keys, values = (
                kv[:, layer].copy().reshape(-1, *kv.shape[3:]).view(dtype)
                for kv in (run.keys, run.values)
            )
            self._operations.store_kv(run.results[qkv], n_heads, run.batch, keys, values)
            for kv, new in ((run.keys, keys), (run.values, values)):
                kv[:, layer] = new.view(np.uint16).reshape(kv[:, layer].shape)
            y: Floats = self._operations.attention(
                run.results[qkv], n_heads, run.batch, keys, values
            )
            return y

        return self._record(step)

    def select(self, x: int) -> int:
        """(r, dim): the rows whose logits are wanted."""
        return self._record(lambda run: run.results[x][run.batch.logit_rows])

    def run(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        row_starts: NDArray[np.int32],
        block_tables: NDArray[np.int32],
        selected: NDArray[np.int32],
        keys: NDArray[np.uint16],
        values: NDArray[np.uint16],
        out: Floats,
    ) -> None:
        """Runs all steps; `out` gets the last one's result."""
        run = _Run(Batch(tokens, positions, row_starts, block_tables, selected), keys, values)
        for step in self._steps:
            run.results.append(step(run))
        out[:] = run.results[-1]

    def _record(self, step: Step) -> int:
        self._steps.append(step)
        return len(self._steps) - 1
