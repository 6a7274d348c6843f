"""The tree of computed prefixes: found to the token, shared, never lost and never given twice."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.block_pool import BlockPool
from starcoder.engine.kv_tree import KVTree, Match, Node


def make(n_blocks: int = 64) -> tuple[BlockPool, KVTree]:
    pool = BlockPool(n_blocks)
    return pool, KVTree(pool)


def enter(pool: BlockPool, tree: KVTree, tokens: list[int], salt: bytes = b"") -> list[Node]:
    """The nodes of some tokens that were computed, held by nobody."""
    path: list[Node] = []
    for start in range(0, len(tokens), BLOCK_LEN):
        parent = path[-1] if path else None
        path.append(tree.add(salt, parent, tokens[start : start + BLOCK_LEN], pool.allocate()))
        tree.hold(path[-1:])
    tree.release(path)
    return path


def test_a_prefix_is_found_to_the_token() -> None:
    pool, tree = make()
    path = enter(pool, tree, list(range(100, 140)))
    for n in range(41):
        match = tree.match(b"", [*range(100, 100 + n), 7, 7, 7])
        assert match.n_tokens == n
        assert list(match.path) == path[: n // BLOCK_LEN]
        assert match.part is (path[n // BLOCK_LEN] if n % BLOCK_LEN else None)
    assert tree.match(b"", list(range(100, 140))).n_tokens == 40
    assert tree.match(b"", []) == Match(())


def test_the_longest_of_several_is_taken() -> None:
    pool, tree = make()
    enter(pool, tree, [1, 2, 3])
    longest = enter(pool, tree, [1, 2, 4, 5, 6])
    match = tree.match(b"", [1, 2, 4, 5, 9])
    assert (match.part, match.n_part) == (longest[0], 4)


def test_salts_share_nothing() -> None:
    pool, tree = make()
    enter(pool, tree, list(range(40)), b"a")
    assert tree.match(b"b", list(range(40))).n_tokens == 0
    assert tree.match(b"", list(range(40))).n_tokens == 0
    assert tree.match(b"a", list(range(40))).n_tokens == 40


def test_two_that_computed_the_same_keep_one_copy() -> None:
    pool, tree = make()
    first = enter(pool, tree, list(range(40)))
    n_free = pool.n_free
    assert enter(pool, tree, list(range(40))) == first
    assert enter(pool, tree, list(range(35)))[-1] is first[-1], "it is within a longer one"
    assert pool.n_free == n_free


def test_a_leaf_that_is_continued_goes() -> None:
    pool, tree = make()
    enter(pool, tree, [1, 2, 3])
    enter(pool, tree, [1, 2, 3, 4])
    assert tree.n_nodes == 1
    assert pool.n_free == pool.n_blocks - 1
    [(_, node)] = tree.nodes()
    tree.hold([node])
    enter(pool, tree, [1, 2, 3, 4, 5])
    assert tree.n_nodes == 2, "but not under one who holds it"


def test_the_least_recently_used_goes_first_and_leaves_before_what_they_stand_on() -> None:
    pool, tree = make()
    old = enter(pool, tree, list(range(48)))
    new = enter(pool, tree, [*range(16), *range(50, 60)])
    tree.hold(old)
    tree.release(old)  # used again
    gone: list[Node] = []
    while tree.n_nodes:
        before = {node for _, node in tree.nodes()}
        assert tree.evict(1) == 1
        gone += before - {node for _, node in tree.nodes()}
    assert gone == [new[1], old[2], old[1], old[0]]
    assert pool.n_free == pool.n_blocks
    assert tree.evict(1) == 0


def test_what_is_held_stays() -> None:
    pool, tree = make()
    path = enter(pool, tree, list(range(48)))
    tree.hold(path[:2])
    assert tree.evict(10) == 1
    assert tree.match(b"", list(range(48))).path == tuple(path[:2])


@pytest.mark.parametrize("tokens", [[], list(range(BLOCK_LEN + 1))])
def test_a_block_of_no_or_too_many_tokens_is_refused(tokens: list[int]) -> None:
    pool, tree = make()
    with pytest.raises(ValueError, match="tree"):
        tree.add(b"", None, tokens, pool.allocate())


def test_nothing_stands_on_a_block_that_is_not_full() -> None:
    pool, tree = make()
    [part] = enter(pool, tree, [1, 2])
    with pytest.raises(ValueError, match="not full"):
        tree.add(b"", part, [3], pool.allocate())


class Users(RuleBasedStateMachine):
    """Sequences that come, compute, and go, against sets of prefixes kept by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.tree = make(24)
        self.held: list[list[Node]] = []

    @rule(
        salt=st.sampled_from([b"", b"x"]),
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=60),
        stays=st.booleans(),
    )
    def compute(self, salt: bytes, tokens: list[int], stays: bool) -> None:
        match = self.tree.match(salt, tokens)
        assert match.n_tokens <= len(tokens)
        path = list(match.path)
        self.tree.hold(path)
        for start in range(len(path) * BLOCK_LEN, len(tokens), BLOCK_LEN):
            if not self.pool.n_free and not self.tree.evict(1):
                break
            block = self.pool.allocate(path[-1].block if path else None)
            piece = tokens[start : start + BLOCK_LEN]
            path.append(self.tree.add(salt, path[-1] if path else None, piece, block))
            self.tree.hold(path[-1:])
            again = self.tree.match(salt, tokens)
            assert again.n_tokens >= min(start + BLOCK_LEN, len(tokens))
        if stays:
            self.held.append(path)
        else:
            self.tree.release(path)

    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        if self.held:
            self.tree.release(self.held.pop(which % len(self.held)))

    @rule(n=st.integers(0, 9))
    def evict(self, n: int) -> None:
        n_free, n_evictable = self.pool.n_free, self.tree.n_evictable
        assert self.tree.evict(n) == min(n, n_evictable) == self.pool.n_free - n_free

    @invariant()
    def every_block_is_free_or_in_one_node(self) -> None:
        nodes = [node for _, node in self.tree.nodes()]
        blocks = [node.block for node in nodes]
        assert len(set(blocks)) == len(blocks) == self.tree.n_nodes
        assert len(blocks) + self.pool.n_free == self.pool.n_blocks
        assert not any(map(self.pool.is_free, blocks))
        assert self.tree.n_evictable == sum(not node.n_users for node in nodes)

    @invariant()
    def what_is_held_is_there(self) -> None:
        nodes = {node for _, node in self.tree.nodes()}
        assert all(node in nodes and node.n_users for path in self.held for node in path)
        for node in nodes:
            assert node.n_users == sum(path.count(node) for path in self.held)

    def teardown(self) -> None:
        for path in self.held:
            self.tree.release(path)
        self.tree.evict(self.pool.n_blocks)
        assert self.pool.n_free == self.pool.n_blocks
        assert not list(self.tree.nodes())


TestUsers = Users.TestCase
TestUsers.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
