"""The free list of cache blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.engine.block_pool import BlockPool


def test_a_pool_gives_each_block_once() -> None:
    pool = BlockPool(10)
    blocks = pool.allocate(4) + pool.allocate(6)
    assert sorted(blocks) == list(range(10))
    assert not pool.can_allocate(1)
    assert pool.can_allocate(0)


def test_more_than_is_free_is_refused_and_changes_nothing() -> None:
    pool = BlockPool(3)
    pool.allocate(1)
    with pytest.raises(ValueError, match="3 blocks wanted, 2 free"):
        pool.allocate(3)
    assert pool.n_free == 2


def test_what_was_freed_last_comes_first() -> None:
    pool = BlockPool(8)
    blocks = pool.allocate(3)
    pool.free(blocks)
    assert pool.allocate(3) == blocks


@pytest.mark.parametrize("wrong", [[5], [0, 0], [0, 5]])
def test_freeing_what_is_not_taken_is_refused_and_changes_nothing(wrong: list[int]) -> None:
    pool = BlockPool(8)
    pool.allocate(2)
    with pytest.raises(ValueError, match="not all taken"):
        pool.free(wrong)
    assert pool.n_free == 6


@given(st.lists(st.integers(0, 6), max_size=30))
def test_no_block_is_ever_held_twice_and_none_is_lost(sizes: list[int]) -> None:
    pool, held = BlockPool(12), []
    for n in sizes:
        if pool.can_allocate(n):
            held.append(pool.allocate(n))
        elif held:
            pool.free(held.pop(0))
        taken = [block for blocks in held for block in blocks]
        assert len(set(taken)) == len(taken) == 12 - pool.n_free
