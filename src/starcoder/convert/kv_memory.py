"""How much memory keys and values may take: one pool, for those that run and those that may return.

By default room for several whole contexts, but no more than most of what the machine leaves beside
the model. Memory is taken only when it is used; `memory` asks whether the model fits at all.
"""

from __future__ import annotations

import math

from starcoder.convert import memory
from starcoder.convert.memory import shown
from starcoder.core.batch import BLOCK_LEN
from starcoder.errors import InputError, MemoryLimitError
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.kv_cache import RUN_LEN, cache_bytes

__all__ = ["n_positions"]

_RUN = RUN_LEN * BLOCK_LEN  # positions: what a cache is rounded up to
_SHARE = 0.75  # of what is left beside the model and one context, by default


def n_positions(
    checkpoint: Checkpoint, n_ctx: int, n_batch: int, n_parallel: int, nbytes: int | None
) -> int:
    """How many positions the pool has, at least `n_ctx`.

    Args:
        checkpoint: the model.
        n_ctx: most tokens of one request.
        n_batch: most tokens in one step.
        n_parallel: contexts that there is room for, where the machine has it.
        nbytes: what the user chose instead.

    Raises:
        InputError: the bytes chosen are less than one context needs.
        MemoryLimitError: they are more than the machine has left.
    """
    config = checkpoint.config
    least, run_bytes = cache_bytes(config, n_ctx), cache_bytes(config, _RUN)
    room = memory.cache_room(checkpoint, memory.Use(n_ctx, n_ctx, n_batch))
    if nbytes is None:
        wanted = n_parallel * n_ctx
        if room is None:
            return wanted
        left = max(0, room.nbytes - least) * _SHARE
        return min(wanted, n_ctx + int(left // run_bytes) * _RUN)
    if nbytes < least:
        expected = f"at least {shown(least, math.ceil)}, for {n_ctx} tokens"
        advice = "choose more, or a smaller context with -c or n_ctx"
        raise InputError("kv_memory", shown(nbytes, math.floor), expected, advice)
    if room is not None and nbytes > max(room.nbytes, least):
        found = f"{shown(nbytes, math.ceil)} for keys and values"
        expected = f"at most {shown(room.nbytes, math.floor)}, the {room.limit} beside the model"
        raise MemoryLimitError("kv_memory", found, expected, "choose less")
    return nbytes // run_bytes * _RUN
