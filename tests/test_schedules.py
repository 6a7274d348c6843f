"""Random schedules: nobody starves, no block is lost or used twice, and steps keep to their bounds.

A thousand steps or so in the tests; `make campaign-engine` walks ten thousand schedules.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Ids

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from starcoder.core.batch import BLOCK_LEN
from starcoder.engine.cost import CostModel, work_of
from starcoder.engine.kv_blocks import KVBlocks
from starcoder.engine.scheduler import Scheduler
from starcoder.engine.sequence import Sequence, Status
from starcoder.sampling.options import GenerationOptions

N_SCHEDULES = int(os.environ.get("STARCODER_SCHEDULES", "40"))
N_BLOCKS, N_CTX, N_BATCH = 8, 100, 24


class Copies:
    """Counts what is copied from where to where."""

    def copy(self, sources: Ids[int], targets: Ids[int]) -> None:
        assert not {*sources} & {*targets}


class Schedules(RuleBasedStateMachine):
    """Requests come, are cancelled, and run, in a cache of which one alone may need most."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.cost = KVBlocks(N_BLOCKS, Copies()), CostModel()
        self.scheduler = Scheduler(self.blocks, self.cost, n_batch=N_BATCH, max_step_seconds=0.25)
        self.n_made = 0

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=N_CTX - 10),
        n=st.integers(1, 10),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "x"]),
    )
    def come(self, tokens: list[int], n: int, priority: int, salt: str) -> None:
        options = GenerationOptions(max_tokens=n, priority=priority, salt=salt)
        self.scheduler.add(Sequence.of(self.n_made, tokens, options, N_CTX, {}))
        self.n_made += 1

    @rule(which=st.integers(0, 99))
    @precondition(lambda self: self.scheduler.running or self.scheduler.waiting)
    def cancel(self, which: int) -> None:
        alive = [*self.scheduler.running, *self.scheduler.waiting]
        self.scheduler.finish(alive[which % len(alive)])

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05]), within=st.sampled_from([9.9, 0.01]))
    def step(self, seconds: float, within: float) -> None:
        self.run(seconds, within)

    def run(self, seconds: float, within: float) -> int:
        """A step; how many tokens it had."""
        running = set(self.scheduler.running)
        chunks = self.scheduler.schedule(within)
        n_tokens = sum(n for _, n in chunks)
        assert n_tokens <= N_BATCH
        for put_off in running - set(self.scheduler.running):
            assert any(one.urgency < put_off.urgency for one in self.scheduler.running)
        for one, n in chunks:
            assert one.status is Status.RUNNING
            assert 1 <= n <= one.n_left
            assert len(one.block_table) * BLOCK_LEN >= one.n_computed + n
            for block in one.block_table[len(one.path) :]:
                assert sum(block in other.block_table for other in self.scheduler.running) == 1
        self.cost.saw(work_of((n, one.n_computed) for one, n in chunks), seconds * n_tokens)
        for one, n in chunks:
            one.advance(n, seconds)
            self.blocks.commit(one)
            if one.n_left == 0:
                one.tokens.append(one.id % 2)
                if one.n_generated == one.max_tokens:
                    self.scheduler.finish(one)
        return n_tokens

    @invariant()
    def every_block_is_free_or_known_or_of_one_sequence(self) -> None:
        known = [node.block for _, node in self.blocks.tree.nodes()]
        own = [b for s in self.scheduler.running for b in s.block_table[len(s.path) :]]
        assert len({*known, *own}) == len(known) + len(own)
        assert len(known) + len(own) + self.blocks.pool.n_free == N_BLOCKS
        assert not any(s.block_table for s in self.scheduler.waiting)

    def teardown(self) -> None:
        """Whoever is left ends, and none waits for ever."""
        alive = [*self.scheduler.running, *self.scheduler.waiting]
        most = sum(2 * len(one.tokens) + 2 * one.max_tokens for one in alive) + len(alive)
        for _ in range(most):
            if not self.scheduler.running and not self.scheduler.waiting:
                break
            assert self.run(0.0, 9.9) > 0, "a step that brings nothing"
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        assert self.blocks.n_available == N_BLOCKS


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=N_SCHEDULES, stateful_step_count=40, deadline=None)
