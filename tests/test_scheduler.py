"""Who runs next, and with how many tokens."""

from __future__ import annotations

import itertools

from starcoder.engine.block_pool import BlockPool
from starcoder.engine.scheduler import Scheduler
from starcoder.engine.sequence import Sequence, Status
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import Sampler

_ids = itertools.count()


def sequence(n_prompt: int, max_tokens: int = 4) -> Sequence:
    return Sequence(
        id=next(_ids),
        tokens=[1] * n_prompt,
        n_prompt=n_prompt,
        max_tokens=max_tokens,
        sampler=Sampler(GenerationOptions()),
        stop_ids=frozenset(),
    )


def scheduler(*sequences: Sequence, n_blocks: int = 100, n_batch: int = 8) -> Scheduler:
    made = Scheduler(BlockPool(n_blocks), n_batch)
    for one in sequences:
        made.add(one)
    return made


def run(chunks: list[tuple[Sequence, int]]) -> None:
    """What a step does to its sequences: compute, and generate where the prompt is done."""
    for one, n in chunks:
        one.n_computed += n
        if one.n_left == 0:
            one.tokens.append(1)


def test_nothing_to_do_is_an_empty_schedule() -> None:
    assert scheduler().schedule() == []


def test_long_prompts_run_in_chunks_of_the_budget() -> None:
    long = sequence(20)
    made = scheduler(long, n_batch=8)
    sizes = []
    for _ in range(4):
        chunks = made.schedule()
        sizes.append([n for _, n in chunks])
        run(chunks)
    assert sizes == [[8], [8], [4], [1]]


def test_single_tokens_go_before_prompts_and_prompts_share_the_rest() -> None:
    decoding, first, second = sequence(1), sequence(5), sequence(6)
    made = scheduler(decoding, n_batch=8)
    run(made.schedule())
    made.add(first)
    made.add(second)
    assert made.schedule() == [(decoding, 1), (first, 5), (second, 2)]


def test_a_step_never_exceeds_the_budget_and_always_moves() -> None:
    made = scheduler(*(sequence(n) for n in (3, 11, 1, 2, 9, 1)), n_batch=4)
    for _ in range(12):
        chunks = made.schedule()
        assert 1 <= sum(n for _, n in chunks) <= 4
        assert all(n >= 1 for _, n in chunks)
        run(chunks)


def test_a_sequence_waits_until_all_its_blocks_are_free() -> None:
    first, second = sequence(16, 16), sequence(16, 17)  # 2 and 3 blocks of 16
    made = scheduler(first, second, n_blocks=4, n_batch=64)
    assert [one for one, _ in made.schedule()] == [first]
    assert second.status is Status.WAITING
    made.finish(first)
    assert [one for one, _ in made.schedule()] == [second]
    assert len(second.block_table) == 3


def test_nobody_overtakes_a_big_request_that_waits() -> None:
    running, big, small = sequence(16, 16), sequence(40, 8), sequence(1, 1)
    made = scheduler(running, big, small, n_blocks=4, n_batch=64)
    assert [one for one, _ in made.schedule()] == [running]
    made.finish(running)
    assert [one for one, _ in made.schedule()] == [small, big]


def test_finishing_gives_the_blocks_back_whether_running_or_waiting() -> None:
    first, second = sequence(30, 30), sequence(30, 30)
    made = scheduler(first, second, n_blocks=4)
    made.schedule()
    made.finish(second)
    made.finish(first)
    assert (made.pool.n_free, first.block_table, second.block_table) == (4, [], [])
    assert first.status is second.status is Status.FINISHED
    assert made.schedule() == []
