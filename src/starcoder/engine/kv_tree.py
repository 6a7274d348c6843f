"""KVTree: which tokens' keys and values are in the cache, so that none are computed twice.

A node is one block of the cache and the tokens that it holds, behind those of its parents: keys and
values depend on every token before, and StarCoder's positions cannot be moved, so a prefix is
reused as a whole or not at all. Sequences that run hold the nodes of their prefix; what nobody
holds stays until its block is wanted, the least recently used first, leaves before what they stand
on. Trees of different salts share nothing, so that a server can keep its users apart.

Bookkeeping over ints, no arrays: whoever owns the cache copies blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.block_pool import BlockPool

__all__ = ["KVTree", "Match", "Node"]


@dataclass(slots=True, eq=False)
class Node:
    """A block whose keys and values are computed."""

    salt: bytes
    block: int  # its number in the cache; -1 for the root of a tree
    tokens: tuple[int, ...]  # BLOCK_LEN of them, or fewer in a leaf
    parent: Node | None
    children: dict[int, list[Node]] = field(default_factory=dict)  # by their first token
    n_users: int = 0  # sequences that hold it

    @property
    def is_full(self) -> bool:
        """Whether others can stand on it."""
        return len(self.tokens) == BLOCK_LEN


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known prefix of some tokens."""

    path: tuple[Node, ...]  # full blocks, from the first on
    part: Node | None = None  # a block whose first `n_part` tokens come next
    n_part: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens whose keys and values are there."""
        return len(self.path) * BLOCK_LEN + self.n_part


class KVTree:
    """The prefixes that are in a cache whose blocks `pool` hands out."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._roots: dict[bytes, Node] = {}
        # Nodes that nobody holds and nothing stands on, the least recently used first.
        self._idle: OrderedDict[Node, None] = OrderedDict()
        self.n_nodes = 0
        self.n_evictable = 0  # nodes that nobody holds

    def match(self, salt: bytes, tokens: Sequence[int]) -> Match:
        """The longest prefix of `tokens` that was computed, to the token."""
        node, path, start = self._roots.get(salt), list[Node](), 0
        while node is not None:
            wanted = tuple(tokens[start : start + BLOCK_LEN])
            best, n_best = None, 0
            for child in node.children.get(wanted[0], ()) if wanted else ():
                n = _n_common(child.tokens, wanted)
                if n > n_best:
                    best, n_best = child, n
            if best is None or n_best < BLOCK_LEN:
                return Match(tuple(path), best, n_best)
            path.append(best)
            node, start = best, start + BLOCK_LEN
        return Match(tuple(path))

    def hold(self, path: Sequence[Node]) -> None:
        """Keep some nodes, parents before children, until `release`."""
        for node in path:
            self.n_evictable -= not node.n_users
            node.n_users += 1
            self._idle.pop(node, None)

    def release(self, path: Sequence[Node]) -> None:
        """Give up nodes that were held."""
        for node in reversed(path):
            node.n_users -= 1
            self.n_evictable += not node.n_users
            if not node.n_users and not node.children:
                self._idle[node] = None

    def add(self, salt: bytes, parent: Node | None, tokens: Sequence[int], block: int) -> Node:
        """Enter a computed block behind `parent`, or as the first of its salt; nobody holds it yet.

        Where the same tokens stand there already, that node is returned, and `block` goes back to
        the pool. A leaf whose tokens this one continues goes, if nobody holds it.

        Raises:
            ValueError: a parent that is not full, no tokens, or more than a block has.
        """
        if not 0 < len(tokens) <= BLOCK_LEN or (parent is not None and not parent.is_full):
            raise ValueError(f"tree: {len(tokens)} tokens behind a block that is not full")
        if parent is None:
            parent = self._roots.setdefault(salt, Node(salt, -1, (0,) * BLOCK_LEN, None))
        key = tuple(tokens)
        siblings = parent.children.setdefault(key[0], [])
        for sibling in siblings:
            if _n_common(sibling.tokens, key) == len(key):  # it holds all of this, or more
                self._pool.free(block)
                return sibling
        continued = [
            s for s in siblings if not s.n_users and _n_common(s.tokens, key) == len(s.tokens)
        ]
        node = Node(salt, block, key, parent)
        siblings.append(node)
        self._idle.pop(parent, None)
        self._idle[node] = None
        self.n_nodes += 1
        self.n_evictable += 1
        for sibling in continued:
            self._remove(sibling)
        return node

    def evict(self, n: int) -> int:
        """Give back up to `n` blocks that nobody holds, the least recently used first; how many."""
        n_freed = 0
        while n_freed < n and self._idle:
            self._remove(next(iter(self._idle)))
            n_freed += 1
        return n_freed

    def recent(self, most: int) -> list[Node]:
        """At most so many nodes, parents first: prefixes that are held, then those used last."""
        found: dict[Node, None] = {}
        held = (node for _, node in self.nodes() if node.n_users)
        for last in (*held, *reversed(self._idle)):
            path, node = list[Node](), last
            while node.parent is not None and node not in found:
                path.append(node)
                node = node.parent
            found.update(dict.fromkeys(path[::-1][: most - len(found)]))
        return list(found)

    def nodes(self) -> Iterator[tuple[bytes, Node]]:
        """All nodes with their salts, parents before children."""
        for salt, root in self._roots.items():
            waiting = [root]
            while waiting:
                node = waiting.pop()
                if node is not root:
                    yield salt, node
                waiting += (child for some in node.children.values() for child in some)

    # -----------------------------------------------------------------------------------------

    def _remove(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del self._idle[node]
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]
        self._pool.free(node.block)
        self.n_nodes -= 1
        self.n_evictable -= 1
        if parent.children or parent.n_users:
            return
        if parent.block < 0:
            self._roots.pop(parent.salt, None)
        else:  # it was used when its children were, and they were older than all that is idle
            self._idle[parent] = None
            self._idle.move_to_end(parent, last=False)


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    if a == b:
        return len(a)
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
