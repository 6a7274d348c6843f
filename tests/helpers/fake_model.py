"""A model whose text depends on every token before, as it finds them in the cache's blocks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import numpy as np

from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.model.config import ModelConfig
from starcoder.model.kv_cache import KVCache

__all__ = ["END", "N_CTX", "N_VOCAB", "POISON", "FakeCache", "FakeModel", "logits_after"]

N_VOCAB, N_CTX, END, POISON = 50, 64, 49, 48
_NONE = 0xFFFF  # no token


class FakeCache(KVCache):
    """Remembers the tokens that a block's keys and values were computed of."""

    def __init__(self, config: ModelConfig, n_blocks: int) -> None:
        super().__init__(config, n_blocks)
        self.blocks: dict[int, dict[int, int]] = defaultdict(dict)

    def read(self, blocks: Ids[int]) -> np.ndarray:
        data = np.full((len(blocks), self.block_bytes // 2), _NONE, np.uint16)
        for row, block in enumerate(blocks):
            for place, token in self.blocks[block].items():
                data[row, place] = token
        return data

    def write(self, blocks: Ids[int], data: np.ndarray) -> None:
        for block, row in zip(blocks, data.tolist(), strict=True):
            known = enumerate(row[:BLOCK_LEN])
            self.blocks[block] = {place: token for place, token in known if token != _NONE}

    def copy(self, sources: Ids[int], targets: Ids[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.blocks[target] = dict(self.blocks[source])


@dataclass
class FakeModel:
    """Logits that depend on every token before, as found in blocks through the block table.

    Each token is written to the block and place that its key would have in the cache. A wrong
    table, a position out of order or a block shared by mistake changes the history, and so the
    text. POISON gives NaN, and a batch of more than `most` tokens finds no memory.
    """

    nbytes: int = 0
    most: int = 1 << 20
    seconds: float = 0.0  # what a token takes, on the clock
    sleeps: float = 0.0  # what a token really takes
    now: float = 0.0
    batches: list[Batch] = field(default_factory=list)
    config: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            architecture="fake",
            n_ctx=N_CTX,
            n_vocab=N_VOCAB,
            dim=4,
            hidden_dim=4,
            n_layers=1,
            n_heads=1,
            n_kv_heads=1,
        )
    )

    def clock(self) -> float:
        return self.now

    def new_cache(self, n_blocks: int) -> FakeCache:
        return FakeCache(self.config, n_blocks)

    def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
        assert isinstance(cache, FakeCache)
        self.batches.append(batch)
        self.now += self.seconds * len(batch.tokens)
        time.sleep(self.sleeps * len(batch.tokens))
        if len(batch.tokens) > self.most:
            raise MemoryError
        logits = np.empty((len(batch.tokens), N_VOCAB), np.float32)
        for s, table in enumerate(batch.block_tables.tolist()):
            assert max(table) < cache.n_blocks
            for row in range(batch.row_starts[s], batch.row_starts[s + 1]):
                blocks = [cache.blocks[block] for block in table]
                places = [divmod(p, BLOCK_LEN) for p in range(batch.positions[row] + 1)]
                block, place = places[-1]
                blocks[block][place] = int(batch.tokens[row])
                logits[row] = logits_after([blocks[block][place] for block, place in places])
        return logits[batch.logit_rows]


def logits_after(history: list[int]) -> np.ndarray:
    logits = np.random.default_rng(history).normal(size=N_VOCAB).astype(np.float32)
    logits[POISON] = -100
    if POISON in history:
        logits[0] = np.nan
    return logits
