"""The free blocks of the cache: each is held once, and neighbors go together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from starcoder.engine.block_pool import BlockPool
from starcoder.model.kv_cache import RUN_LEN


def test_a_pool_gives_each_block_once() -> None:
    pool = BlockPool(2 * RUN_LEN + 3)
    assert sorted(pool.allocate() for _ in range(pool.n_blocks)) == list(range(pool.n_blocks))
    assert pool.n_free == 0
    with pytest.raises(ValueError, match="all 35 blocks are taken"):
        pool.allocate()


def test_a_sequence_goes_on_behind_its_last_block() -> None:
    pool = BlockPool(4 * RUN_LEN)
    first, other = pool.allocate(n_more=20), pool.allocate(n_more=20)
    assert first // RUN_LEN != other // RUN_LEN, "long ones have runs of their own"
    for _ in range(RUN_LEN - 1):
        first, other = pool.allocate(first), pool.allocate(other)
    assert first % RUN_LEN == other % RUN_LEN == RUN_LEN - 1


def test_short_sequences_leave_whole_runs_to_long_ones() -> None:
    pool = BlockPool(8 * RUN_LEN)
    short = [pool.allocate() for _ in range(RUN_LEN)]
    assert len({block // RUN_LEN for block in short}) == 1
    assert pool.allocate(n_more=100) // RUN_LEN != short[0] // RUN_LEN


def test_what_was_freed_last_comes_first() -> None:
    pool = BlockPool(8 * RUN_LEN)
    blocks = [pool.allocate() for _ in range(3 * RUN_LEN)]
    pool.free(blocks[20])
    assert pool.allocate() == blocks[20]


@pytest.mark.parametrize("wrong", [5, -1, 8, 1 << 40])
def test_freeing_what_is_not_taken_is_refused_and_changes_nothing(wrong: int) -> None:
    pool = BlockPool(8)
    pool.allocate()
    with pytest.raises(ValueError, match="is not taken"):
        pool.free(wrong)
    assert pool.n_free == 7


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 99)), max_size=200))
def test_no_block_is_ever_held_twice_and_none_is_lost(
    moves: list[tuple[bool, int, int]],
) -> None:
    pool, held = BlockPool(2 * RUN_LEN + 5), list[int]()
    for takes, n_more, which in moves:
        if takes and pool.n_free:
            after = held[which % len(held)] if held and which % 2 else None
            held.append(pool.allocate(after, n_more))
        elif held:
            pool.free(held.pop(which % len(held)))
        assert len(set(held)) == len(held) == pool.n_blocks - pool.n_free
        assert not any(map(pool.is_free, held))
