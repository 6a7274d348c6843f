"""Sequences over one cache: each reads back what it would have computed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.kv_tree import Node


@dataclass(eq=False)
class Holder:
    tokens: list[int]
    salt: bytes = b""
    n_computed: int = 0
    n_cached: int = 0
    path: list[Node] = field(default_factory=list)
    block_table: list[int] = field(default_factory=list)


class Cache:
    """Keeps for each position all tokens up to it: as keys and values do, in effect."""

    def __init__(self, n_blocks: int) -> None:
        self.rows: list[list[object]] = [[None] * BLOCK_LEN for _ in range(n_blocks)]

    def copy(self, sources: Ids[int], targets: Ids[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = list(self.rows[source])

    def write(self, holder: Holder, position: int) -> None:
        block = holder.block_table[position // BLOCK_LEN]
        self.rows[block][position % BLOCK_LEN] = (holder.salt, *holder.tokens[: position + 1])

    def check(self, holder: Holder) -> None:
        for position in range(holder.n_computed):
            row = self.rows[holder.block_table[position // BLOCK_LEN]]
            assert row[position % BLOCK_LEN] == (holder.salt, *holder.tokens[: position + 1])


def make(n_blocks: int = 64) -> tuple[KVBlocks, Cache]:
    cache = Cache(n_blocks)
    return KVBlocks(n_blocks, cache), cache


def compute(blocks: KVBlocks, cache: Cache, holder: Holder, n_tokens: int) -> bool:
    if not blocks.grow(holder, n_tokens):
        return False
    for position in range(holder.n_computed, n_tokens):
        cache.write(holder, position)
    holder.n_computed = max(holder.n_computed, n_tokens)
    blocks.commit(holder)
    return True


def run(blocks: KVBlocks, cache: Cache, tokens: list[int]) -> Holder:
    holder = Holder(tokens)
    blocks.admit(holder)
    assert compute(blocks, cache, holder, len(tokens))
    return holder


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40, 47, 48])
def test_the_next_one_computes_only_what_is_new(n: int) -> None:
    blocks, cache = make()
    blocks.leave(run(blocks, cache, list(range(48))))
    holder = Holder([*range(n), 99, 98])
    blocks.admit(holder)
    assert holder.n_computed == holder.n_cached == n == blocks.n_known(b"", holder.tokens)
    cache.check(holder)
    assert compute(blocks, cache, holder, n + 2)
    cache.check(holder)


def test_the_last_token_is_always_computed_for_its_logits_are_wanted() -> None:
    blocks, cache = make()
    blocks.leave(run(blocks, cache, list(range(48))))
    for n in (1, 2, 16, 17, 32, 48):
        holder = Holder(list(range(n)))
        blocks.admit(holder)
        assert holder.n_computed == n - 1 == blocks.n_known(b"", holder.tokens)
        blocks.leave(holder)


def test_whose_logits_are_all_wanted_computes_all() -> None:
    blocks, cache = make()
    blocks.leave(run(blocks, cache, list(range(48))))
    holder = Holder(list(range(48)))
    blocks.admit(holder, most=0)
    assert holder.n_computed == 0
    assert compute(blocks, cache, holder, 48)
    blocks.leave(holder)
    assert blocks.n_available == 64


def test_a_block_is_shared_as_soon_as_it_is_full() -> None:
    blocks, cache = make()
    first = run(blocks, cache, list(range(40)))
    second = Holder([*range(40), 7])
    blocks.admit(second)
    assert second.n_computed == 32
    assert second.block_table == first.block_table[:2]


def test_two_that_compute_the_same_at_once_keep_one_copy() -> None:
    blocks, cache = make()
    a, b = Holder(list(range(40))), Holder(list(range(40)))
    for holder in (a, b):
        blocks.admit(holder)
    for holder in (a, b):
        assert compute(blocks, cache, holder, 40)
        cache.check(holder)
    assert a.block_table[:2] == b.block_table[:2]
    assert blocks.pool.n_free == 64 - 4


def test_where_there_is_no_room_nothing_changes() -> None:
    blocks, cache = make(3)
    holder = run(blocks, cache, list(range(20)))
    assert not blocks.grow(holder, 49)
    assert len(holder.block_table) == 2
    cache.check(holder)
    assert blocks.grow(holder, 48)


class Sequences(RuleBasedStateMachine):
    """Many that come, grow, are put off, and end in a cache that is too small for them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.cache = make(20)
        self.running: list[Holder] = []
        self.random = random.Random(0)

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=70),
        salt=st.sampled_from([b"", b"x"]),
    )
    def come(self, tokens: list[int], salt: bytes) -> None:
        holder = Holder(tokens, salt)
        self.blocks.admit(holder)
        assert holder.n_computed < len(tokens)
        self.running.append(holder)

    @rule(which=st.integers(0, 99), n=st.integers(1, 40))
    def step(self, which: int, n: int) -> None:
        if self.running:
            holder = self.running[which % len(self.running)]
            wanted = min(len(holder.tokens), holder.n_computed + n)
            before = list(holder.block_table)
            if not compute(self.blocks, self.cache, holder, wanted):
                assert holder.block_table == before
            elif wanted == len(holder.tokens):
                holder.tokens.append(n % 2)

    @rule(which=st.integers(0, 99))
    def end(self, which: int) -> None:
        if self.running:
            self.blocks.leave(self.running.pop(which % len(self.running)))

    @rule(which=st.integers(0, 99))
    def put_off(self, which: int) -> None:
        if self.running:
            holder = self.running[which % len(self.running)]
            self.blocks.leave(holder)
            self.blocks.admit(holder)

    @invariant()
    def each_reads_its_own_past(self) -> None:
        for holder in self.running:
            self.cache.check(holder)

    @invariant()
    def no_block_is_lost_or_written_by_two(self) -> None:
        own = [b for h in self.running for b in h.block_table[len(h.path) :]]
        tree = [node.block for _, node in self.blocks.tree.nodes()]
        free = self.blocks.pool.n_free
        assert len({*own, *tree}) == len(own) + len(tree) == self.blocks.pool.n_blocks - free

    def teardown(self) -> None:
        for holder in self.running:
            self.blocks.leave(holder)
        assert self.blocks.n_available == self.blocks.pool.n_blocks


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
