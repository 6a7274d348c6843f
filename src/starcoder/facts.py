"""Facts: what a loaded model is, for people to read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from starcoder.core import ops
from starcoder.core.machine import Threads
from starcoder.model.checkpoint import Checkpoint

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Where a model came from, its shape, and how it runs here."""

    source: str  # file or directory
    format: str  # "GGUF v3"
    name: str  # what the file calls the model; may be empty
    architecture: str  # "gpt_bigcode"
    type_name: str  # type of most weights: "q4_0"
    n_parameters: int
    n_vocab: int
    n_ctx: int  # tokens of prompt and output together, as chosen
    max_ctx: int  # what the model was made for
    dim: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    weight_bytes: int  # in memory
    n_threads: int
    threads_note: str  # why there are no more: "of 2 CPUs: CPU quota of 0.5"; may be empty
    isa: str  # instruction set of the kernels: "avx2"
    load_ms: float  # milliseconds that reading the model took

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, *, n_ctx: int, threads: Threads, nbytes: int, load_ms: float
    ) -> Facts:
        """The facts of a model that runs with these choices; `nbytes` of weights in memory."""
        config = checkpoint.config
        return cls(
            source=checkpoint.source,
            format=checkpoint.label,
            name=config.name,
            architecture=config.architecture,
            type_name=checkpoint.type_name,
            n_parameters=sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
            n_vocab=config.n_vocab,
            n_ctx=n_ctx,
            max_ctx=config.n_ctx,
            dim=config.dim,
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            n_layers=config.n_layers,
            weight_bytes=nbytes,
            n_threads=threads.n,
            threads_note=threads.note,
            isa=ops.isa(),
            load_ms=load_ms,
        )
