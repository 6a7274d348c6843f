"""One model, timed on random tokens; and what it does for them, in multiply-adds and bytes.

As in llama-bench: no text, no sampling, a prompt that begins at the given depth, then tokens
one at a time from there. Earlier positions are computed once and stay in the cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from starcoder.convert import memory
from starcoder.core import ops
from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.core.tensor import TensorType
from starcoder.errors import InputError
from starcoder.model import models
from starcoder.model.architecture import Role, TensorSpec
from starcoder.model.checkpoint import Checkpoint, Format
from starcoder.model.config import ModelConfig
from starcoder.model.kv_cache import KVCache

__all__ = ["Runner", "Task", "Work", "check_room"]

_CHUNK = 512  # prompt tokens in one step, as the command has it
_PANEL_ROWS = 32  # of a packed matrix: what its rows are rounded up to


@dataclass(frozen=True, slots=True)
class Task:
    """What is timed: a prompt of `n_prompt` tokens, or `n_decode` tokens one by one, at a depth."""

    n_prompt: int = 512
    n_decode: int = 64
    depth: int = 0  # tokens in the cache before
    batch: int = 1  # sequences that decode together


@dataclass(frozen=True, slots=True)
class Work:
    """What a run has to do, in this program or another."""

    tokens: int
    multiply_adds: float  # of the matrices; attention is not counted
    nbytes: float  # of weights, keys and values that are read


def check_room(config: ModelConfig, task: Task) -> int:
    """How many positions the task needs.

    Raises:
        InputError: more than the context has.
    """
    n = task.depth + max(task.n_prompt, task.n_decode)
    if n > config.n_ctx:
        found, expected = f"{n} tokens with what follows", f"at most {config.n_ctx} with this model"
        raise InputError("--depth", found, expected, "choose a smaller --depth, -p or -n")
    return n


def _use(checkpoint: Checkpoint, n_positions: int) -> memory.Use:
    use = memory.Use(n_positions, n_positions, _CHUNK, "choose smaller -p, -n, --depth or --batch")
    if checkpoint.format is Format.RANDOM:
        return replace(use, type_option="--type {type}")
    return use


class Runner:
    """A model and its cache, ready to be timed again and again.

    Raises:
        InputError: the context is too short for the task.
        MemoryLimitError: no memory for the model or its cache.
    """

    def __init__(self, checkpoint: Checkpoint, task: Task) -> None:
        self.config, self.task = checkpoint.config, task
        n = check_room(self.config, task)
        self._specs = models.find(checkpoint).specs(self.config.n_layers).values()
        self.type = TensorType[checkpoint.type_name.upper()]
        self.read_bytes = -_unread_bytes(checkpoint)
        memory.check(checkpoint, _use(checkpoint, task.batch * n))
        self._model = models.build(checkpoint)
        self.read_bytes += self._model.nbytes
        n_blocks = math.ceil(n / BLOCK_LEN)
        tables = np.arange(task.batch * n_blocks).reshape(task.batch, n_blocks)
        self._tables = [table.tolist() for table in tables]
        self._cache = KVCache(self.config, tables.size)
        ids = np.random.default_rng(0).integers(0, self.config.n_vocab, n)
        self._ids: list[int] = ids.tolist()
        self._fill()

    def prompt(self) -> float:
        """Seconds for the prompt."""
        start = time.perf_counter()
        self._read(self.task.depth, self.task.n_prompt)
        return time.perf_counter() - start

    def decode(self, batch: int | None = None) -> float:
        """Seconds until `batch` sequences have their tokens; by default as many as the task has."""
        batch = batch or self.task.batch
        start = time.perf_counter()
        for at in range(self.task.depth, self.task.depth + self.task.n_decode):
            self._step(at, batch)
        return time.perf_counter() - start

    def warm_up(self) -> None:
        """One prompt and one token, untimed, and the pages that a long run has: see `ops`."""
        self._read(self.task.depth, self.task.n_prompt)
        self._step(self.task.depth, self.task.batch)
        ops.collapse_pages()

    # ---- what is done ---------------------------------------------------------------------------

    @property
    def prompt_work(self) -> Work:
        """Of a prompt. After the last layer's attention there is only its last token."""
        n, per_token = self.task.n_prompt, self._layers - self._tail
        macs = n * per_token + self._tail + self._output
        reads = math.ceil(n / _CHUNK) * self.read_bytes + self._kv_bytes(self.task.depth + n)
        return Work(n, macs, reads)

    def decode_work(self, batch: int) -> Work:
        """Of the tokens that `batch` sequences decode; weights are read once for all of them."""
        steps, tokens = self.task.n_decode, self.task.n_decode * batch
        past = self.task.depth + (steps + 1) / 2  # keys that a token meets, on average
        reads = steps * self.read_bytes + tokens * self._kv_bytes(past)
        return Work(tokens, tokens * (self._layers + self._output), reads)

    @cached_property
    def _layers(self) -> float:
        return self._multiply_adds(spec for spec in self._specs if spec.layer is not None)

    @cached_property
    def _tail(self) -> float:
        """In the last layer, after attention."""
        last = (spec for spec in self._specs if spec.layer == self.config.n_layers - 1)
        return self._multiply_adds(spec for spec in last if not spec.role.is_before_attention)

    @cached_property
    def _output(self) -> float:
        return self._multiply_adds(spec for spec in self._specs if spec.role is Role.OUTPUT)

    def _multiply_adds(self, specs: Iterable[TensorSpec]) -> float:
        shapes = (spec.shape(self.config) for spec in specs if spec.role.is_matrix)
        return float(sum(map(math.prod, shapes)))

    def _kv_bytes(self, n: float) -> float:
        """Of the keys and values of n positions, in all layers."""
        return n * self._cache.nbytes / (self._cache.n_blocks * BLOCK_LEN)

    # ---- how it is done -------------------------------------------------------------------------

    def _fill(self) -> None:
        """Computes what lies before the depth, once, and gives every sequence a copy."""
        self._read(0, self.task.depth)
        for table in self._tables[1:]:
            self._cache.copy(self._tables[0], table)

    def _read(self, start: int, n: int) -> None:
        table = self._tables[0]
        for at in range(start, start + n, _CHUNK):
            ids = self._ids[at : min(at + _CHUNK, start + n)]
            rows = [len(ids) - 1] if at + len(ids) == start + n else []
            self._model.forward(Batch.of([(ids, at, table)], rows), self._cache)

    def _step(self, at: int, batch: int) -> None:
        tables, ids = self._tables[:batch], self._ids[at : at + 1]
        chunks = [(ids, at, table) for table in tables]
        self._model.forward(Batch.of(chunks, range(batch)), self._cache)


def _unread_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of an embedding that is not the output matrix too: of it a token reads one row."""
    architecture = models.find(checkpoint)
    if architecture.output(checkpoint.tensors) == architecture.embedding:
        return 0
    table = checkpoint.tensors[architecture.embedding]
    n_panels = math.ceil(table.shape[0] / _PANEL_ROWS)
    return ops.pack(table.rows(0, _PANEL_ROWS)).nbytes * n_panels
