"""KVBlocks: the share of the key/value cache that each sequence has, and what others left there.

A sequence stands on nodes of the tree, blocks that others may stand on too, and writes to blocks of
its own behind them. A block of its own that is full goes into the tree at once, so that whoever
comes meanwhile finds it; when the sequence ends, so does the last one, as far as it is computed.
Of a block that has only the first tokens that are wanted, a copy is taken.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids
from typing import Protocol

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.block_pool import BlockPool
from starcoder.engine.kv_tree import KVTree, Node

__all__ = ["Holder", "KVBlocks", "Store"]


class Store(Protocol):
    """Where keys and values are: a KVCache."""

    def copy(self, sources: Ids[int], targets: Ids[int]) -> None:
        """Copy blocks, of all layers, to others."""


class Holder(Protocol):
    """What a sequence knows of its blocks; all of it is kept here."""

    salt: bytes
    tokens: list[int]
    n_computed: int  # tokens whose keys and values are in the cache
    n_cached: int  # of these, how many others had computed
    path: list[Node]  # its first blocks, in the tree and held; the others are its own
    block_table: list[int]  # all of its blocks, in the order of positions


class KVBlocks:
    """Blocks for sequences, out of a cache of `n_blocks`."""

    def __init__(self, n_blocks: int, store: Store) -> None:
        self._store = store
        self.pool = BlockPool(n_blocks)
        self.tree = KVTree(self.pool)

    @property
    def n_available(self) -> int:
        """Blocks that are free, or can be made free by forgetting what nobody uses."""
        return self.pool.n_free + self.tree.n_evictable

    def n_known(self, salt: bytes, tokens: Ids[int]) -> int:
        """How many tokens of a prompt need not be computed; the last one always is."""
        return min(self.tree.match(salt, tokens).n_tokens, len(tokens) - 1)

    def n_idle_on_path(self, salt: bytes, tokens: Ids[int]) -> int:
        """How many blocks of the known prefix of a prompt nobody holds."""
        return sum(not node.n_users for node in self.tree.match(salt, tokens).path)

    def admit(self, holder: Holder, *, most: int | None = None) -> None:
        """Give a sequence what is known of its tokens.

        Args:
            holder: the sequence, which has no blocks.
            most: how many tokens it need not compute, as their logits are not wanted (any more).
        """
        match = self.tree.match(holder.salt, holder.tokens[:-1][:most])
        n = match.n_tokens
        holder.path = list(match.path[: n // BLOCK_LEN])
        self.tree.hold(holder.path)
        holder.block_table = [node.block for node in holder.path]
        if n % BLOCK_LEN:
            assert match.part is not None
            self.tree.hold([match.part])  # so that making room does not take it
            if self._take(holder, 1):
                self._store.copy([match.part.block], holder.block_table[-1:])
            else:
                n -= n % BLOCK_LEN
            self.tree.release([match.part])
        holder.n_computed = holder.n_cached = n

    def grow(self, holder: Holder, n_tokens: int, n_more: int = 0) -> bool:
        """Make room for so many tokens in all; False if there is none, and nothing has changed.

        Args:
            holder: the sequence.
            n_tokens: tokens that it will have.
            n_more: tokens that may follow, so that its blocks lie together.
        """
        n = -(-n_tokens // BLOCK_LEN) - len(holder.block_table)
        return n <= 0 or self._take(holder, n, n_more // BLOCK_LEN)

    def commit(self, holder: Holder) -> None:
        """Show others the blocks that a sequence has filled."""
        while holder.n_computed >= (len(holder.path) + 1) * BLOCK_LEN:
            self._enter(holder, BLOCK_LEN)

    def leave(self, holder: Holder) -> None:
        """Take a sequence's blocks back; what it has computed stays for others."""
        self.commit(holder)
        n = holder.n_computed - len(holder.path) * BLOCK_LEN
        if n:
            self._enter(holder, n)
        for block in holder.block_table[len(holder.path) :]:
            self.pool.free(block)
        self.tree.release(holder.path)
        holder.path, holder.block_table, holder.n_computed = [], [], 0

    # -----------------------------------------------------------------------------------------

    def _take(self, holder: Holder, n: int, n_more: int = 0) -> bool:
        if n > self.n_available:
            return False
        self.tree.evict(n - self.pool.n_free)
        for i in range(n):
            last = holder.block_table[-1] if holder.block_table else None
            holder.block_table.append(self.pool.allocate(last, n - 1 - i + n_more))
        return True

    def _enter(self, holder: Holder, n: int) -> None:
        """Put the first of a sequence's own blocks, with `n` tokens computed, into the tree."""
        i = len(holder.path)
        tokens = holder.tokens[i * BLOCK_LEN : i * BLOCK_LEN + n]
        parent = holder.path[-1] if holder.path else None
        node = self.tree.add(holder.salt, parent, tokens, holder.block_table[i])
        holder.block_table[i] = node.block  # another's, if that had the same tokens
        self.tree.hold([node])
        holder.path.append(node)
