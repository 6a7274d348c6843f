"""KVCache: the keys and values of past tokens, in blocks of BLOCK_LEN positions.

Storage only. Which block belongs to which sequence is bookkeeping, done in `engine.block_pool`;
what is written and read is done by `ops`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from starcoder.batch import BLOCK_LEN
from starcoder.config import ModelConfig
from starcoder.errors import MemoryLimitError

__all__ = ["KVCache"]

_LANES = 16  # values are read 16 dimensions at a time: head_dim is padded to a multiple of it
_LINE = 64  # bytes


class KVCache:
    """`n_blocks` blocks for every layer. Memory is taken page by page, when first written.

    All layers of a block lie side by side, so that a short text touches few pages: the system has
    to clear each of them first, in pieces of up to 2 MB (docs/log.md).

    Keys stand with their positions innermost, values with their dimensions innermost: the order
    in which attention multiplies them, so nothing is transposed when they are read. Whether a layer
    keeps f16, or bf16 in pairs, is its graph's affair: both take two bytes a number.

    Args:
        config: shapes of the model.
        n_blocks: blocks in each layer; one sequence of n positions takes ceil(n / BLOCK_LEN).

    Raises:
        MemoryLimitError: the address space has no room for it.
    """

    def __init__(self, config: ModelConfig, n_blocks: int) -> None:
        width = -(-config.head_dim // _LANES) * _LANES
        heads = (n_blocks, config.n_layers, config.n_kv_heads)
        try:
            # (n_blocks, n_layers, n_kv_heads, width, BLOCK_LEN) and (..., BLOCK_LEN, width)
            self.keys = _zeros((*heads, width, BLOCK_LEN))
            self.values = _zeros((*heads, BLOCK_LEN, width))
        except (MemoryError, ValueError):
            raise MemoryLimitError(
                "key/value cache",
                f"no memory for {n_blocks * BLOCK_LEN} positions",
                "a context that fits",
                "choose a smaller one with -c or n_ctx",
            ) from None
        self.n_blocks = n_blocks

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values when every block is in use."""
        return self.keys.nbytes + self.values.nbytes


def _zeros(shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """Zeros that begin with a cache line, as no allocator promises: blocks are whole lines."""
    n = math.prod(shape)
    room = np.zeros(n + _LINE // 2, np.uint16)
    skip = -room.ctypes.data % _LINE // 2
    return room[skip : skip + n].reshape(shape)
