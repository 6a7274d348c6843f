"""The engine over a fake model that reads its history through the block tables."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import FrozenInstanceError, dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.engine import Engine, EngineStats, Event
from starcoder.errors import InputError
from starcoder.model.config import ModelConfig
from starcoder.model.kv_cache import KVCache
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import LogitsError

N_VOCAB, N_CTX, END, POISON = 50, 64, 49, 48


@dataclass
class FakeModel:
    """Logits that depend on every token before, as found in blocks through the block table.

    Each token is written to the block and place that its key would have in the cache. A wrong
    table, a position out of order or a block shared by mistake changes the history, and so the
    text. POISON gives NaN.
    """

    nbytes: int = 0
    batches: list[Batch] = field(default_factory=list)
    blocks: dict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    config: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            architecture="fake",
            n_ctx=N_CTX,
            n_vocab=N_VOCAB,
            dim=4,
            hidden_dim=4,
            n_layers=1,
            n_heads=1,
            n_kv_heads=1,
        )
    )

    def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
        self.batches.append(batch)
        logits = np.empty((len(batch.tokens), N_VOCAB), np.float32)
        for s, table in enumerate(batch.block_tables.tolist()):
            assert max(table) < cache.n_blocks
            for row in range(batch.row_starts[s], batch.row_starts[s + 1]):
                blocks = [self.blocks[block] for block in table]
                places = [divmod(p, BLOCK_LEN) for p in range(batch.positions[row] + 1)]
                block, place = places[-1]
                blocks[block][place] = int(batch.tokens[row])
                logits[row] = logits_after([blocks[block][place] for block, place in places])
        return logits[batch.logit_rows]


def logits_after(history: list[int]) -> np.ndarray:
    logits = np.random.default_rng(history).normal(size=N_VOCAB).astype(np.float32)
    logits[POISON] = -100
    if POISON in history:
        logits[0] = np.nan
    return logits


def engine(n_batch: int = 512, n_parallel: int = 4, model: FakeModel | None = None) -> Engine:
    return Engine(model or FakeModel(), n_ctx=N_CTX, n_batch=n_batch, n_parallel=n_parallel)


def drain(made: Engine, earlier: list[Event] | None = None) -> dict[int, list[Event]]:
    """All events of each request: the earlier ones, and those until the engine is idle."""
    events = list(earlier or [])
    for _ in range(1000):
        if made.is_idle:
            ids = {event.id for event in events}
            return {id_: [event for event in events if event.id == id_] for id_ in ids}
        events += made.step()
    raise AssertionError("the engine goes on for ever")


def greedy(n: int) -> GenerationOptions:
    return GenerationOptions(max_tokens=n)


def outcome(events: list[Event]) -> tuple[list[int], str | None]:
    """The text of a request, and how it ended."""
    assert all(event.finish_reason is None for event in events[:-1])
    return [event.token for event in events if event.token is not None], events[-1].finish_reason


def alone(prompt: list[int], options: GenerationOptions) -> tuple[list[int], str | None]:
    made = engine()
    request = made.submit(prompt, options, stop_ids=[END])
    return outcome(drain(made)[request])


# ---------------------------------------------------------------------------------------------


def test_greedy_text_is_what_the_model_says_token_by_token() -> None:
    tokens = [3, 1, 4]
    while len(tokens) < 13:
        tokens.append(int(np.argmax(logits_after(tokens))))
    assert END not in tokens
    assert alone([3, 1, 4], greedy(10)) == (tokens[3:], "length")


requests = st.lists(
    st.tuples(
        st.lists(st.integers(0, POISON - 1), min_size=1, max_size=40),
        st.integers(0, 12),
        st.integers(0, 9),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=40, deadline=None)
@given(requests, st.integers(1, 70), st.integers(1, 3), st.randoms(use_true_random=False))
def test_neighbors_chunks_and_order_never_change_your_text(
    requests: list[tuple[list[int], int, int]], n_batch: int, n_parallel: int, rng: random.Random
) -> None:
    made = engine(n_batch, n_parallel)
    expected, earlier = {}, []
    for prompt, n, seed in requests:
        options = GenerationOptions(max_tokens=n, temperature=1, seed=seed)
        expected[made.submit(prompt, options, stop_ids=[END])] = alone(prompt, options)
        for _ in range(rng.randrange(3)):
            earlier += made.step()
        if rng.random() < 0.2:
            made.cancel(made.submit([1, 2], greedy(30)))
    events = drain(made, earlier)
    assert {request: outcome(events[request]) for request in expected} == expected


def test_many_sequences_share_one_batch() -> None:
    model = FakeModel()
    made = engine(model=model)
    for start in range(3):
        made.submit([start, 5], greedy(5))
    drain(made)
    assert [len(batch.tokens) for batch in model.batches] == [6, 3, 3, 3, 3]


def test_logits_are_asked_for_only_where_a_token_is_sampled() -> None:
    model = FakeModel()
    made = engine(n_batch=8, model=model)
    made.submit(list(range(20)), greedy(2))
    drain(made)
    assert [len(batch.logit_rows) for batch in model.batches] == [0, 0, 1, 1]


def test_an_end_id_stops_and_is_not_part_of_the_text() -> None:
    text, _ = alone([3, 1, 4], greedy(10))
    stop = text[4]
    made = engine()
    request = made.submit([3, 1, 4], greedy(10), stop_ids=[stop])
    events = drain(made)[request]
    assert outcome(events) == (text[: text.index(stop)], "stop")
    assert (events[-1].token, events[-1].finish_reason) == (None, "stop")


def test_an_end_id_in_the_prompt_does_not_stop() -> None:
    assert len(alone([END, 2, END], greedy(3))[0]) >= 1


def test_text_ends_where_the_context_is_full() -> None:
    text, reason = alone([1] * 60, greedy(100))
    assert (len(text), reason) == (N_CTX - 60, "length")
    assert alone([1] * N_CTX, greedy(100)) == ([], "length")


def test_no_tokens_wanted_ends_without_running_the_model() -> None:
    model = FakeModel()
    made = engine(model=model)
    request = made.submit([1], greedy(0))
    assert outcome(drain(made)[request]) == ([], "length")
    assert model.batches == []


@pytest.mark.parametrize("n_batch", [1, 3, 512])
def test_logits_of_every_position_come_whole_whatever_the_chunks(n_batch: int) -> None:
    made = engine(n_batch)
    prompt = [4, 8, 15, 16, 23, 42, 4, 8]
    made.submit([1, 2, 3], greedy(20))
    request = made.submit(prompt, greedy(9), wants_logits=True)
    events = drain(made)[request]
    found = np.concatenate([event.logits for event in events])
    expected = [logits_after(prompt[: i + 1]) for i in range(len(prompt))]
    assert np.array_equal(found, np.array(expected))
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize("n_steps", [0, 1, 2, 5])
def test_cancelling_ends_one_and_frees_its_blocks(n_steps: int) -> None:
    made = engine(n_batch=8, n_parallel=1)
    first = made.submit([9] * 20, greedy(40))
    second = made.submit([9, 9], greedy(3))
    earlier = [event for _ in range(n_steps) for event in made.step()]
    made.cancel(first)
    made.cancel(first)
    made.cancel(12345)
    events = drain(made, earlier)
    assert (events[first][-1].token, events[first][-1].finish_reason) == (None, "cancelled")
    assert outcome(events[second]) == alone([9, 9], greedy(3))


def test_the_engine_says_how_busy_it_is() -> None:
    made = engine(n_batch=8, n_parallel=1)
    idle = EngineStats(n_running=0, n_waiting=0, n_blocks=4, n_free_blocks=4)
    assert made.stats() == idle
    first, second = made.submit([9] * 20, greedy(40)), made.submit([9] * 20, greedy(5))
    made.step()
    assert made.stats() == EngineStats(n_running=1, n_waiting=1, n_blocks=4, n_free_blocks=0)
    made.cancel(first)
    made.step()
    made.step()
    assert made.stats() == EngineStats(n_running=1, n_waiting=0, n_blocks=4, n_free_blocks=2)
    made.cancel(second)
    drain(made)
    assert made.stats() == idle


def test_events_say_what_a_request_has_cost_and_keep_saying_it() -> None:
    made = engine(n_batch=8)
    request = made.submit([9] * 20, greedy(4))
    events = drain(made)[request]
    costs = [(event.stats.prompt_tokens, event.stats.decoded_tokens) for event in events]
    assert costs == [(20, 0), (20, 1), (20, 2), (20, 3)]
    assert events[0].stats.prompt_seconds == events[-1].stats.prompt_seconds
    assert events[0].stats.decode_seconds == 0.0 < events[-1].stats.decode_seconds
    with pytest.raises(FrozenInstanceError):
        events[0].stats.decoded_tokens = 9  # type: ignore[misc]


def test_a_request_with_bad_logits_ends_alone() -> None:
    made = engine()
    good = made.submit([5, 6], greedy(6))
    bad = made.submit([5, POISON, 6], greedy(6))
    events = drain(made)
    assert [event.finish_reason for event in events[bad]] == ["error"]
    assert isinstance(events[bad][0].error, LogitsError)
    assert outcome(events[good]) == alone([5, 6], greedy(6))


def test_a_step_that_is_interrupted_can_be_taken_again() -> None:
    class Interrupted(FakeModel):
        def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
            logits = super().forward(batch, cache)
            if len(self.batches) % 3 == 0:
                raise KeyboardInterrupt
            return logits

    made = engine(n_batch=4, model=Interrupted())
    made.submit([2] * 10, greedy(6))
    events = []
    while not made.is_idle:
        try:
            events += made.step()
        except KeyboardInterrupt:
            continue
    assert outcome(events) == alone([2] * 10, greedy(6))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([1] * (N_CTX + 1), f"found {N_CTX + 1} tokens, expected at most {N_CTX}"),
        ([1, N_VOCAB], "found token id 50, expected 0 to 49"),
        ([-1], "found token id -1"),
    ],
)
def test_prompts_that_cannot_run_are_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine().submit(prompt, greedy(1))
