"""Which sequences run next, and with how many tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Ids

from starcoder.engine.cost import CostModel, work_of
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.scheduler import Chunk, Scheduler
from starcoder.engine.sequence import Sequence, Status
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import Sampler

_ids = itertools.count()


class NoStore:
    def copy(self, sources: Ids[int], targets: Ids[int]) -> None:
        assert len(sources) == len(targets)


def sequence(n_prompt: int, max_tokens: int = 4, priority: int = 0) -> Sequence:
    id_ = next(_ids)
    return Sequence(
        id=id_,
        tokens=[id_] * n_prompt,
        n_prompt=n_prompt,
        max_tokens=max_tokens,
        sampler=Sampler(GenerationOptions()),
        stop_ids=frozenset(),
        priority=priority,
    )


class Steps:
    """A scheduler, and what a step does to its sequences: compute, and generate."""

    def __init__(
        self,
        *sequences: Sequence,
        n_blocks: int = 100,
        n_batch: int = 8,
        seconds: float = 0.0,
        max_step_seconds: float = 0.25,
    ) -> None:
        self.cost, self.seconds = CostModel(), seconds
        self.blocks = KVBlocks(n_blocks, NoStore())
        self.scheduler = Scheduler(
            self.blocks, self.cost, n_batch=n_batch, max_step_seconds=max_step_seconds
        )
        for one in sequences:
            self.scheduler.add(one)

    def step(self) -> list[Chunk]:
        chunks = self.scheduler.schedule()
        work = work_of((n, one.n_computed) for one, n in chunks)
        self.cost.saw(work, self.seconds * sum(n for _, n in chunks))
        for one, n in chunks:
            one.n_computed += n
            self.blocks.commit(one)
            if one.n_left == 0:
                one.tokens.append(1)
        return chunks


def test_nothing_to_do_is_an_empty_schedule() -> None:
    assert Steps().step() == []


def test_long_prompts_run_in_chunks_of_the_budget() -> None:
    steps = Steps(sequence(20), n_batch=8)
    assert [[n for _, n in steps.step()] for _ in range(4)] == [[8], [8], [4], [1]]


def test_single_tokens_go_before_prompts_and_prompts_share_the_rest() -> None:
    decoding, first, second = sequence(1), sequence(5), sequence(6)
    steps = Steps(decoding, n_batch=8)
    steps.step()
    steps.scheduler.add(first)
    steps.scheduler.add(second)
    assert steps.step() == [(decoding, 1), (first, 5), (second, 2)]


def test_a_step_never_exceeds_the_budget_and_always_moves() -> None:
    steps = Steps(*(sequence(n) for n in (3, 11, 1, 2, 9, 1)), n_batch=4)
    for _ in range(12):
        chunks = steps.step()
        assert 1 <= sum(n for _, n in chunks) <= 4
        assert all(n >= 1 for _, n in chunks)


def test_a_sequence_waits_until_there_is_room_for_its_prompt() -> None:
    first, second = sequence(40), sequence(40)
    steps = Steps(first, second, n_blocks=4, n_batch=64)
    assert [one for one, _ in steps.step()] == [first]
    assert second.status is Status.WAITING
    steps.scheduler.finish(first)
    assert [one for one, _ in steps.step()] == [second]


def test_nobody_overtakes_a_big_request_that_waits() -> None:
    running, big, small = sequence(30), sequence(50), sequence(1, 1)
    steps = Steps(running, big, small, n_blocks=4, n_batch=64)
    assert [one for one, _ in steps.step()] == [running]
    steps.scheduler.finish(running)
    assert {one.id for one, _ in steps.step()} == {big.id}


def test_the_more_urgent_is_admitted_first_and_takes_the_room_of_the_less_urgent() -> None:
    slow, quick = sequence(40, priority=1), sequence(40)
    steps = Steps(slow, n_blocks=4, n_batch=64)
    steps.step()
    steps.scheduler.add(quick)
    assert [one for one, _ in steps.step()] == [quick]
    assert (slow.status, slow.block_table) == (Status.WAITING, [])


def test_the_oldest_goes_on_where_room_runs_out() -> None:
    first, second = sequence(30, 30), sequence(30, 30)
    steps = Steps(first, second, n_blocks=5, n_batch=64)
    for _ in range(25):
        steps.step()
    assert len(first.tokens) > 50
    assert first.status is Status.RUNNING


def test_prompts_are_cut_to_the_time_of_a_step_and_take_turns() -> None:
    warm = sequence(200)
    steps = Steps(warm, n_batch=512, seconds=0.01)
    for _ in range(30):
        steps.step()
    steps.scheduler.finish(warm)
    first, second = sequence(300), sequence(300)
    for one in (first, second):
        steps.scheduler.add(one)
    for _ in range(4):
        assert sum(n for _, n in steps.step()) <= 40
    assert min(first.n_computed, second.n_computed) >= 30


def test_a_prompt_moves_in_every_step_however_long_that_takes() -> None:
    steps = Steps(sequence(1, 50), n_batch=512, seconds=10.0)
    for _ in range(3):
        steps.step()
    slow = sequence(100)
    steps.scheduler.add(slow)
    steps.step()
    steps.step()
    assert slow.n_computed >= 32


def test_finishing_gives_the_blocks_back_whether_running_or_waiting() -> None:
    first, second = sequence(50, 30), sequence(50, 30)
    steps = Steps(first, second, n_blocks=4)
    steps.step()
    steps.scheduler.finish(second)
    steps.scheduler.finish(first)
    assert (steps.blocks.n_available, first.block_table, second.block_table) == (4, [], [])
    assert first.status is second.status is Status.FINISHED
    assert steps.step() == []


def test_the_less_urgent_ride_along_with_the_more_urgent_and_delay_nobody() -> None:
    typing, batch = sequence(5), sequence(100, priority=1)
    steps = Steps(typing, batch, n_batch=512)
    assert steps.step() == [(typing, 5), (batch, 11)]
    assert steps.step() == [(typing, 1), (batch, 15)]
    steps.scheduler.finish(typing)
    assert steps.step() == [(batch, 74)]
