"""The engine over a fake model that reads its history through the block tables."""

from __future__ import annotations

import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.engine import Engine, Event
from starcoder.errors import InputError, MemoryLimitError
from starcoder.model.kv_cache import KVCache
from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import LogitsError
from tests.helpers.fake_model import END, N_CTX, N_VOCAB, POISON, FakeModel, logits_after


def engine(n_batch: int = 512, n_parallel: int = 4, model: FakeModel | None = None) -> Engine:
    model = model or FakeModel()
    return Engine(
        model, n_ctx=N_CTX, n_batch=n_batch, n_positions=n_parallel * N_CTX, clock=model.clock
    )


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
    stats = made.stats()
    assert (stats.n_blocks, stats.n_free_blocks, stats.n_idle_blocks) == (4, 4, 0)
    first, second = made.submit([9] * 40, greedy(20)), made.submit([8] * 40, greedy(5))
    made.step()
    assert (made.stats().n_running, made.stats().n_waiting) == (1, 1)
    assert (made.stats().n_free_blocks, made.stats().n_idle_blocks) == (3, 0)
    made.cancel(first)
    made.step()
    made.step()
    assert (made.stats().n_running, made.stats().n_waiting) == (1, 0)
    made.cancel(second)
    drain(made)
    stats = made.stats()
    assert (stats.n_running, stats.n_free_blocks + stats.n_idle_blocks) == (0, 4)


def test_events_say_what_a_request_has_cost_and_keep_saying_it() -> None:
    made = engine(n_batch=8, model=FakeModel(seconds=0.01))
    request = made.submit([9] * 20, greedy(4))
    events = drain(made)[request]
    costs = [(event.stats.prompt_tokens, event.stats.decoded_tokens) for event in events]
    assert costs == [(20, 0), (20, 1), (20, 2), (20, 3)]
    assert [event.stats.prompt_seconds for event in events] == [pytest.approx(0.2)] * 4
    assert events[-1].stats.decode_seconds == pytest.approx(0.03)
    with pytest.raises(FrozenInstanceError):
        events[0].stats.decoded_tokens = 9  # type: ignore[misc]


# ---- nothing twice ----


@pytest.mark.parametrize("n", [1, 15, 16, 17, 33, 40])
def test_a_prefix_that_was_computed_is_not_computed_again(n: int) -> None:
    model = FakeModel()
    made = engine(model=model)
    prompt = [i % 7 for i in range(40)]
    drain_one(made, prompt, 3)
    model.batches.clear()
    events = drain_one(made, [*prompt[:n], 9, 9], 3)
    assert [len(batch.tokens) for batch in model.batches] == [2, 1, 1]
    assert events[0].stats.cached_tokens == n
    assert outcome(events) == alone([*prompt[:n], 9, 9], greedy(3))


def test_what_was_generated_is_a_prefix_too() -> None:
    model = FakeModel()
    made = engine(model=model)
    text, _ = outcome(drain_one(made, [3, 1, 4], 20))
    model.batches.clear()
    events = drain_one(made, [3, 1, 4, *text, 5], 1)
    assert events[0].stats.cached_tokens == len(text) + 2, (
        "all but the last token, which was not computed"
    )
    assert outcome(events) == alone([3, 1, 4, *text, 5], greedy(1))


def test_requests_that_come_together_compute_their_common_prefix_once() -> None:
    model = FakeModel()
    made = engine(n_batch=16, model=model)
    prompts = [[*range(40), i] for i in range(3)]
    expected = {made.submit(prompt, greedy(4)): alone(prompt, greedy(4)) for prompt in prompts}
    events = drain(made)
    assert {request: outcome(events[request]) for request in expected} == expected
    n_prompt_tokens = sum(len(b.tokens) for b in model.batches) - 3 * 3
    assert n_prompt_tokens <= 41 + 2 * 9, "the first, and what the others have behind 32 tokens"


def test_salts_keep_what_was_computed_apart() -> None:
    model = FakeModel()
    made = engine(model=model)
    for salt in ("a", "b", "a"):
        made.submit([5] * 40, GenerationOptions(max_tokens=1, salt=salt))
        drain(made)
    assert [len(batch.tokens) for batch in model.batches] == [40, 40, 1]


def test_logits_are_given_of_cached_tokens_too() -> None:
    made = engine()
    drain_one(made, [3] * 40, 1)
    request = made.submit([3] * 40, greedy(0), wants_logits=True)
    logits = np.concatenate([event.logits for event in drain(made)[request]])
    assert np.array_equal(logits, np.array([logits_after([3] * (i + 1)) for i in range(40)]))


# ---- room, time and faults ----


@settings(max_examples=30, deadline=None)
@given(requests, st.integers(4, 8), st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_cache_that_is_too_small_for_all_changes_nothing_but_the_time(
    requests: list[tuple[list[int], int, int]], n_blocks: int, n_batch: int, rng: random.Random
) -> None:
    model = FakeModel()
    made = Engine(model, n_ctx=N_CTX, n_positions=n_blocks * BLOCK_LEN, n_batch=n_batch)
    expected, earlier = {}, []
    for prompt, n, seed in requests:
        options = GenerationOptions(
            max_tokens=n, temperature=1, seed=seed, priority=rng.randrange(2)
        )
        request = made.submit(prompt, options, stop_ids=[END])
        expected[request] = alone(prompt, options)
        for _ in range(rng.randrange(3)):
            earlier += made.step()
    events = drain(made, earlier)
    assert {request: outcome(events[request]) for request in expected} == expected
    stats = made.stats()
    assert stats.n_free_blocks + stats.n_idle_blocks == n_blocks


def test_the_more_urgent_takes_the_blocks_of_the_less_urgent_which_goes_on_later() -> None:
    made = engine(n_parallel=1)
    slow = made.submit([1] * 30, GenerationOptions(max_tokens=30, priority=1))
    earlier = [event for _ in range(3) for event in made.step()]
    quick = made.submit([2] * 40, greedy(3))
    while earlier[-1].id != quick or earlier[-1].finish_reason is None:
        assert sum(event.id == slow for event in earlier) < 6
        earlier += made.step()
    events = drain(made, earlier)
    assert outcome(events[quick]) == alone([2] * 40, greedy(3))
    assert outcome(events[slow]) == alone([1] * 30, greedy(30))


def test_a_prompt_never_keeps_those_who_decode_waiting_longer_than_a_step_should_take() -> None:
    model = FakeModel(seconds=0.01)
    made = engine(model=model)
    for i in range(5):
        drain_one(made, [i, *range(40)], 5)
    decoding = made.submit([7], greedy(50))
    made.step()
    made.submit([8] * 60, greedy(1))
    gaps, last = [], model.now
    for _ in range(20):
        if any(event.id == decoding for event in made.step()):
            gaps.append(model.now - last)
            last = model.now
    assert len(gaps) == 20
    assert max(gaps) < 0.3


def test_prompts_of_one_priority_take_turns() -> None:
    model = FakeModel(seconds=0.01)
    made = engine(model=model)
    for i in range(5):
        drain_one(made, [i, *range(40)], 5)
    ids = [made.submit([i] * 60, greedy(1)) for i in (7, 8)]
    for _ in range(3):
        made.step()
    computed = [made._sequences[i].n_computed for i in ids if i in made._sequences]
    assert len(computed) == 2
    assert min(computed) > 0


def test_who_lacks_memory_ends_alone() -> None:
    made = engine(model=FakeModel(most=20))
    small = [made.submit([i, 1], greedy(6)) for i in range(3)]
    big = made.submit([9] * 30, greedy(6))
    events = drain(made)
    assert [event.finish_reason for event in events[big]] == ["error"]
    assert isinstance(events[big][0].error, MemoryLimitError)
    for i, request in enumerate(small):
        assert outcome(events[request]) == alone([i, 1], greedy(6))


def test_whatever_a_sampler_raises_its_neighbors_go_on() -> None:
    made = engine()
    bad, good = made.submit([1, 2], greedy(5)), made.submit([3, 4], greedy(5))

    def fail(*_: object) -> int:
        raise TypeError("no number")

    made._sequences[bad].sampler.sample = fail  # type: ignore[method-assign, assignment]
    events = drain(made)
    assert str(events[bad][-1].error).startswith("step: found TypeError: no number")
    assert outcome(events[good]) == alone([3, 4], greedy(5))


def drain_one(made: Engine, prompt: list[int], n: int) -> list[Event]:
    request = made.submit(prompt, greedy(n), stop_ids=[END])
    return drain(made)[request]


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
