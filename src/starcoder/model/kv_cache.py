"""KVCache: the keys and values of past tokens, in blocks of BLOCK_LEN positions.

Storage only. Which block belongs to which sequence is bookkeeping, done in `engine.block_pool`;
what is written and read is done by `ops`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from starcoder.core.batch import BLOCK_LEN
from starcoder.errors import MemoryLimitError
from starcoder.model.config import ModelConfig

__all__ = ["RUN_LEN", "KVCache", "cache_bytes"]

RUN_LEN = 16  # blocks of a layer that lie side by side: as many as one softmax spans

_LANES = 16  # values are read 16 dimensions at a time: head_dim is padded to a multiple of it
_LINE = 64  # bytes


class KVCache:
    """`n_blocks` blocks for every layer. Memory is taken page by page, when first written.

    Blocks are stored in runs of RUN_LEN: the blocks of the first layer one after the other, then
    the blocks of the next layer. So a short text touches few pages, which the system has to clear
    first, in pieces of up to 2 MB; and the keys that one layer reads of a long text lie together
    (docs/log.md).

    Keys are stored with positions innermost, values with dimensions innermost: the order in which
    attention multiplies them, so nothing is transposed when they are read. The graph decides
    whether a layer keeps f16, or bf16 in pairs: both take two bytes a number.

    Args:
        config: shapes of the model.
        n_blocks: blocks in each layer, rounded up to whole runs; one sequence of n positions takes
            ceil(n / BLOCK_LEN).

    Raises:
        MemoryLimitError: the address space has no room for it.
    """

    def __init__(self, config: ModelConfig, n_blocks: int) -> None:
        *heads, width = _shape(config, n_blocks)
        try:
            # (n_runs, n_layers, RUN_LEN, n_kv_heads, width, BLOCK_LEN), (..., BLOCK_LEN, width)
            self.keys = _zeros((*heads, width, BLOCK_LEN))
            self.values = _zeros((*heads, BLOCK_LEN, width))
        except (MemoryError, ValueError):
            raise MemoryLimitError(
                "key/value cache",
                f"not enough memory for {n_blocks * BLOCK_LEN} positions",
                "",
                "choose a smaller one with -c or n_ctx",
            ) from None
        self.n_blocks = heads[0] * RUN_LEN

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values when every block is in use."""
        return self.keys.nbytes + self.values.nbytes

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies blocks, of all layers, to others."""
        (run, block), (to_run, to_block) = (
            divmod(np.array(x), RUN_LEN) for x in (sources, targets)
        )
        for store in (self.keys, self.values):
            store[to_run, :, to_block] = store[run, :, block]


def cache_bytes(config: ModelConfig, n_positions: int) -> int:
    """Bytes of keys and values of so many positions of one sequence, rounded up to whole runs."""
    return 2 * 2 * BLOCK_LEN * math.prod(_shape(config, -(-n_positions // BLOCK_LEN)))


def _shape(config: ModelConfig, n_blocks: int) -> tuple[int, int, int, int, int]:
    """Runs, layers, blocks of a run, heads, and the width of a head in the cache."""
    width = -(-config.head_dim // _LANES) * _LANES
    return -(-n_blocks // RUN_LEN), config.n_layers, RUN_LEN, config.n_kv_heads, width


def _zeros(shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Zeros that begin with a cache line, as no allocator promises: blocks are whole lines."""
    n = math.prod(shape)
    room = np.zeros(n + _LINE // 2, np.uint16)
    skip = -room.ctypes.data % _LINE // 2
    return room[skip : skip + n].reshape(shape)
