"""The engine over a fake model that reads its history from the cache, block by block."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starcoder.batch import BLOCK_LEN, Batch
from starcoder.config import ModelConfig
from starcoder.engine import Engine, Event, Sequence
from starcoder.errors import InputError
from starcoder.kv_cache import KVCache
from starcoder.sampler import LogitsError, SamplingParams

N_VOCAB, N_CTX, END, POISON = 50, 64, 49, 48
GREEDY = SamplingParams(temperature=0)


@dataclass
class FakeModel:
    """Logits that depend on every token before, as found in the cache through the block table.

    Each token is written where its key belongs. A wrong table, a position out of order or a
    block shared by mistake changes the history, and so the text. POISON gives NaN.
    """

    nbytes: int = 0
    batches: list[Batch] = field(default_factory=list)
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
        store = cache.keys[:, 0, :, 0, 0].reshape(-1, BLOCK_LEN)  # a view: there is one layer
        logits = np.empty((len(batch.tokens), N_VOCAB), np.float32)
        for s, table in enumerate(batch.block_tables):
            for row in range(batch.row_starts[s], batch.row_starts[s + 1]):
                position = batch.positions[row]
                store[table[position // BLOCK_LEN], position % BLOCK_LEN] = batch.tokens[row]
                history = [
                    int(store[table[p // BLOCK_LEN], p % BLOCK_LEN]) for p in range(position + 1)
                ]
                logits[row] = logits_after(history)
        return logits[batch.logit_rows]


def logits_after(history: list[int]) -> np.ndarray:
    logits = np.random.default_rng(history).normal(size=N_VOCAB).astype(np.float32)
    logits[POISON] = -100
    if POISON in history:
        logits[0] = np.nan
    return logits


def engine(n_batch: int = 512, n_parallel: int = 4, model: FakeModel | None = None) -> Engine:
    return Engine(model or FakeModel(), n_ctx=N_CTX, n_batch=n_batch, n_parallel=n_parallel)


def drain(made: Engine, max_steps: int = 1000) -> dict[int, list[Event]]:
    events: dict[int, list[Event]] = {}
    for _ in range(max_steps):
        if made.is_idle:
            return events
        for event in made.step():
            events.setdefault(event.id, []).append(event)
    raise AssertionError("the engine goes on for ever")


def outcome(sequence: Sequence) -> tuple[list[int], str | None]:
    return sequence.tokens[sequence.n_prompt :], sequence.finish_reason


def alone(prompt: list[int], params: SamplingParams, n: int) -> tuple[list[int], str | None]:
    made = engine()
    sequence = made.submit(prompt, params, max_tokens=n, stop_ids=[END])
    drain(made)
    return outcome(sequence)


# ---------------------------------------------------------------------------------------------


def test_greedy_text_is_what_the_model_says_token_by_token() -> None:
    tokens = [3, 1, 4]
    while len(tokens) < 13:
        tokens.append(int(np.argmax(logits_after(tokens))))
    assert END not in tokens
    assert alone([3, 1, 4], GREEDY, 10) == (tokens[3:], "length")


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
    sequences = []
    for prompt, n, seed in requests:
        params = SamplingParams(seed=seed)
        sequence = made.submit(prompt, params, max_tokens=n, stop_ids=[END])
        sequences.append((sequence, alone(prompt, params, n)))
        for _ in range(rng.randrange(3)):
            made.step()
        if rng.random() < 0.2:
            made.cancel(made.submit([1, 2], GREEDY, max_tokens=30).id)
    drain(made)
    for sequence, expected in sequences:
        assert outcome(sequence) == expected


def test_many_sequences_share_one_batch() -> None:
    model = FakeModel()
    made = engine(model=model)
    for start in range(3):
        made.submit([start, 5], GREEDY, max_tokens=5)
    drain(made)
    assert [len(batch.tokens) for batch in model.batches] == [6, 3, 3, 3, 3]


def test_logits_are_asked_for_only_where_a_token_is_sampled() -> None:
    model = FakeModel()
    made = engine(n_batch=8, model=model)
    made.submit(list(range(20)), GREEDY, max_tokens=2)
    drain(made)
    assert [len(batch.logit_rows) for batch in model.batches] == [0, 0, 1, 1]


def test_an_end_id_stops_and_is_not_part_of_the_text() -> None:
    text, _ = alone([3, 1, 4], GREEDY, 10)
    stop = text[4]
    made = engine()
    sequence = made.submit([3, 1, 4], GREEDY, max_tokens=10, stop_ids=[stop])
    events = drain(made)[sequence.id]
    assert outcome(sequence) == (text[: text.index(stop)], "stop")
    assert (events[-1].token, events[-1].finish_reason) == (None, "stop")


def test_an_end_id_in_the_prompt_does_not_stop() -> None:
    assert len(alone([END, 2, END], GREEDY, 3)[0]) >= 1


def test_text_ends_where_the_context_is_full() -> None:
    text, reason = alone([1] * 60, GREEDY, 100)
    assert (len(text), reason) == (N_CTX - 60, "length")
    assert alone([1] * N_CTX, GREEDY, 100) == ([], "length")


def test_no_tokens_wanted_ends_without_running_the_model() -> None:
    model = FakeModel()
    made = engine(model=model)
    sequence = made.submit([1], GREEDY, max_tokens=0)
    assert drain(made)[sequence.id][0].finish_reason == "length"
    assert model.batches == []


@pytest.mark.parametrize("n_batch", [1, 3, 512])
def test_logits_of_every_position_come_whole_whatever_the_chunks(n_batch: int) -> None:
    made = engine(n_batch)
    prompt = [4, 8, 15, 16, 23, 42, 4, 8]
    made.submit([1, 2, 3], GREEDY, max_tokens=20)
    sequence = made.submit(prompt, GREEDY, max_tokens=9, wants_logits=True)
    events = drain(made)[sequence.id]
    found = np.concatenate([event.logits for event in events])
    expected = [logits_after(prompt[: i + 1]) for i in range(len(prompt))]
    assert np.array_equal(found, np.array(expected))
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize("n_steps", [0, 1, 2, 5])
def test_cancelling_ends_one_and_frees_its_blocks(n_steps: int) -> None:
    made = engine(n_batch=8, n_parallel=1)
    first = made.submit([9] * 20, GREEDY, max_tokens=40)
    second = made.submit([9, 9], GREEDY, max_tokens=3)
    for _ in range(n_steps):
        made.step()
    made.cancel(first.id)
    made.cancel(first.id)
    made.cancel(12345)
    events = drain(made)
    assert events[first.id] == [events[first.id][0]]
    assert (events[first.id][0].token, first.finish_reason) == (None, "cancelled")
    assert outcome(second) == alone([9, 9], GREEDY, 3)


def test_a_request_with_bad_logits_ends_alone() -> None:
    made = engine()
    good = made.submit([5, 6], GREEDY, max_tokens=6)
    bad = made.submit([5, POISON, 6], GREEDY, max_tokens=6)
    events = drain(made)
    assert [event.finish_reason for event in events[bad.id]] == ["error"]
    assert isinstance(events[bad.id][0].error, LogitsError)
    assert outcome(good) == alone([5, 6], GREEDY, 6)


def test_a_step_that_is_interrupted_can_be_taken_again() -> None:
    class Interrupted(FakeModel):
        def forward(self, batch: Batch, cache: KVCache) -> np.ndarray:
            logits = super().forward(batch, cache)
            if len(self.batches) % 3 == 0:
                raise KeyboardInterrupt
            return logits

    made = engine(n_batch=4, model=Interrupted())
    sequence = made.submit([2] * 10, GREEDY, max_tokens=6)
    while sequence.finish_reason is None:
        try:
            made.step()
        except KeyboardInterrupt:
            continue
    assert outcome(sequence) == alone([2] * 10, GREEDY, 6)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "found no tokens"),
        ([1] * (N_CTX + 1), f"found {N_CTX + 1} tokens, expected at most {N_CTX}"),
        ([1, N_VOCAB], "found token id 50, expected 0 to 49"),
        ([-1], "found token id -1"),
    ],
)
def test_prompts_that_cannot_run_are_refused(prompt: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine().submit(prompt, GREEDY, max_tokens=1)
