"""What a step is expected to take, learned from the steps before it."""

from __future__ import annotations

import random

import pytest

from starcoder.engine.cost import CostModel, work_of

Chunks = list[tuple[int, int]]
PROBES: list[Chunks] = [[(1, 10)], [(8, 100)], [(100, 0)], [(512, 0)], [(1, 1900)]]


def true_seconds(chunks: Chunks) -> float:
    one, few, many, pairs = work_of(chunks)
    return 0.020 * one + 0.0005 * few + 0.003 * many + 0.0008 * pairs


def mixed(rng: random.Random) -> Chunks:
    chunks = [(1, rng.randrange(2000)) for _ in range(rng.randrange(4))]
    if rng.random() < 0.4 or not chunks:
        chunks.append((rng.randrange(1, 512), rng.randrange(1000)))
    return chunks


def learned(n: int, seed: int = 0, noise: float = 0.1) -> CostModel:
    model, rng = CostModel(), random.Random(seed)
    for _ in range(n):
        chunks = mixed(rng)
        stall = 10 if rng.random() < 0.02 else 1
        model.saw(work_of(chunks), true_seconds(chunks) * rng.uniform(1 - noise, 1 + noise) * stall)
    return model


def test_nothing_is_expected_before_anything_was_seen() -> None:
    assert CostModel().seconds(work_of([(10, 0)])) == 0


@pytest.mark.parametrize("seed", range(5))
def test_it_learns_what_steps_take_in_spite_of_noise_and_stalls(seed: int) -> None:
    model = learned(100, seed)
    for probe in PROBES:
        assert model.seconds(work_of(probe)) == pytest.approx(true_seconds(probe), rel=0.3)


def test_it_follows_a_machine_that_becomes_slower() -> None:
    model, rng = learned(100), random.Random(1)
    for _ in range(300):
        chunks = mixed(rng)
        model.saw(work_of(chunks), 3 * true_seconds(chunks))
    for probe in PROBES:
        assert model.seconds(work_of(probe)) == pytest.approx(3 * true_seconds(probe), rel=0.3)


def test_a_long_answer_does_not_make_it_forget_what_prompts_take() -> None:
    model = learned(100)
    before = model.seconds(work_of([(300, 0)]))
    for i in range(3000):
        model.saw(work_of([(1, i % 2000)]), true_seconds([(1, i % 2000)]))
    assert model.seconds(work_of([(300, 0)])) == pytest.approx(before, rel=0.5)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e4])
def test_no_step_is_expected_to_take_less_than_nothing(seconds: float) -> None:
    model = learned(10)
    for probe in PROBES:
        model.saw(work_of(probe), seconds)
        assert all(price >= 0 for price in model.prices)


def test_chunks_are_cut_to_the_time_that_is_left() -> None:
    model, others = learned(200), [(1, 1500), (1, 30)]
    for limit in (0.05, 0.1, 0.25, 1.0):
        n = model.most_tokens(others, 1000, limit, 512)
        assert n == 512 or model.seconds(work_of([*others, (n + 1, 1000)])) > limit
        assert n == 0 or model.seconds(work_of([*others, (n, 1000)])) <= limit
    assert model.most_tokens(others, 0, 100.0, 512) == 512
    assert model.most_tokens(others, 0, 0.0, 512) == 0
