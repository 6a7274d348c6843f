"""Keeping keys and values outside of the cache: what to take along, and putting it back.

Called between two steps, by whoever owns the engine. Blocks that are in the tree are never written
again while somebody holds them, so they are held here and read by another thread, while steps go
on. What is taken along are prefixes, those that were used last first, so that a part of them, from
the first on, is of use too. A disk can be slow, and requests must have blocks meanwhile: enough for
a whole context stay out of this, or what the cache has beyond one, but an eighth of it in any case.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.block_pool import BlockPool
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.kv_tree import Node
from starcoder.errors import StarcoderError
from starcoder.model.kv_cache import KVCache

__all__ = ["Entry", "Restorer", "hold", "release"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A block of a prefix: its tokens, and which entry before it in the list it continues."""

    salt: bytes
    parent: int  # -1: none, it is the first of its prefix
    tokens: tuple[int, ...]


class Owner(Protocol):
    """What has a cache and its bookkeeping: an engine."""

    n_ctx: int
    blocks: KVBlocks
    cache: KVCache


def hold(owner: Owner, most: int) -> tuple[KVBlocks, list[Node], list[Entry]]:
    """Hold the blocks, at most so many, that were used last; give what is known of each."""
    blocks = owner.blocks
    nodes = blocks.tree.recent(min(most, blocks.pool.n_blocks - _n_beside(owner)))
    blocks.tree.hold(nodes)
    place = {id(node): i for i, node in enumerate(nodes)}
    entries = [Entry(node.salt, place.get(id(node.parent), -1), node.tokens) for node in nodes]
    return blocks, nodes, entries


def release(owner: Owner, held: KVBlocks, nodes: Ids[Node]) -> None:
    """Give them up, unless the engine has begun anew meanwhile."""
    if owner.blocks is held:
        held.tree.release(nodes)


class Restorer:
    """Puts blocks back in the order of their entries, and lets requests find them at the end."""

    def __init__(self, owner: Owner, entries: Ids[Entry]) -> None:
        self._owner, self._entries = owner, entries
        self._held = owner.blocks
        self._taken: list[int] = []

    def put(self, data: NDArray[np.uint16]) -> int:
        """Put the next blocks (n, ...), as `KVCache.read` gave them; how many there was room for.

        What is in the cache stays: only free blocks are taken, and of those that requests can
        have enough are left, for nobody finds or evicts what was put back until the end.
        """
        pool = self._pool()
        n_spare = self._held.n_available - _n_beside(self._owner)
        n = max(0, min(len(data), pool.n_free, n_spare))
        new: list[int] = []
        for i in range(n):
            after = new[-1] if new else self._taken[-1] if self._taken else None
            new.append(pool.allocate(after, len(self._entries) - len(self._taken) - i - 1))
            self._taken.append(new[-1])
        if n:
            self._owner.cache.write(new, data[:n])
        return n

    def finish(self) -> int:
        """Let requests find what was put back; how many tokens that are."""
        self._pool()
        tree, nodes = self._held.tree, list[Node]()
        while self._taken:
            entry = self._entries[len(nodes)]
            parent = None if entry.parent < 0 else nodes[entry.parent]
            nodes.append(tree.add(entry.salt, parent, entry.tokens, self._taken.pop(0)))
            tree.hold(nodes[-1:])  # so that no later one takes its place
        tree.release(nodes)
        for node in reversed(nodes):  # so that those that were used last are again
            tree.hold([node])
            tree.release([node])
        return sum(len(node.tokens) for node in nodes)

    def abandon(self) -> None:
        """Give back what was taken, unless it was put in the tree."""
        if self._owner.blocks is self._held:
            for block in self._taken:
                self._held.pool.free(block)
        self._taken.clear()

    def _pool(self) -> BlockPool:
        if self._owner.blocks is not self._held:
            raise StarcoderError("cache", "one that began anew meanwhile", "one that stays")
        return self._held.pool


def _n_beside(owner: Owner) -> int:
    """Blocks that requests have to themselves while others are kept or put back."""
    n, n_context = owner.blocks.pool.n_blocks, -(-owner.n_ctx // BLOCK_LEN)
    return min(n_context, max(n - n_context, -(-n // 8)))
