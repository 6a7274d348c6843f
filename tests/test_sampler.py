"""The sampler on distributions small enough to know the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from starcoder.sampling.options import GenerationOptions
from starcoder.sampling.sampler import LogitsError, Sampler


def logits_of(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, np.float32))


FOUR = logits_of(0.1, 0.4, 0.3, 0.2)


def draw(
    n: int, logits: np.ndarray = FOUR, tokens: tuple[int, ...] = (), **options: Any
) -> np.ndarray:
    """Shares of each id in n draws, at temperature 1 unless said otherwise."""
    sampler = Sampler(GenerationOptions(**{"seed": 1, "temperature": 1.0, **options}))
    ids = [sampler.sample(logits, tokens) for _ in range(n)]
    return np.bincount(ids, minlength=len(logits)) / n


def test_temperature_zero_takes_the_most_likely_token_and_the_lowest_id_of_equals() -> None:
    sampler = Sampler(GenerationOptions(temperature=0))
    assert sampler.sample(FOUR, ()) == 1
    assert sampler.sample(np.array([1, 3, 3, 2], np.float32), ()) == 1


def test_draws_follow_the_distribution() -> None:
    shares = draw(20000, top_k=0, top_p=1.0)
    assert shares == pytest.approx([0.1, 0.4, 0.3, 0.2], abs=0.02)


def test_low_temperature_sharpens_and_high_flattens() -> None:
    assert draw(2000, top_p=1.0, temperature=0.1)[1] > 0.9
    assert draw(20000, top_p=1.0, temperature=1e6) == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e300])
def test_extreme_temperatures_give_a_token(temperature: float) -> None:
    assert draw(1, temperature=temperature).sum() == 1


def test_top_k_keeps_k_tokens_and_renormalizes() -> None:
    assert draw(20000, top_k=2, top_p=1.0) == pytest.approx([0, 4 / 7, 3 / 7, 0], abs=0.02)
    assert draw(20000, top_k=2, top_p=1.0)[[0, 3]].sum() == 0


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    for p, kept in [(0.0, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.91, 4), (1.0, 4)]:
        for top_k in (0, 4):
            shares = draw(2000, top_k=top_k, top_p=p)
            assert np.count_nonzero(shares) == kept, (p, top_k)


def test_top_p_counts_within_top_k() -> None:
    # Of the two kept, the first has 4/7 = 0.571.
    assert np.count_nonzero(draw(500, top_k=2, top_p=0.57)) == 1
    assert np.count_nonzero(draw(500, top_k=2, top_p=0.58)) == 2


def test_repeat_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    for logits in ([2.0, 1.9, 0.0], [-1.0, -1.1, -5.0]):
        sampler = Sampler(GenerationOptions(repeat_penalty=1.5))
        assert sampler.sample(np.array(logits, np.float32), []) == 0
        assert sampler.sample(np.array(logits, np.float32), [0]) == 1


def test_repeat_penalty_looks_back_repeat_last_n_tokens() -> None:
    logits = np.array([2.0, 1.9, 0.0], np.float32)
    tokens = [0, 2, 2]
    for n, expected in [(0, 0), (2, 0), (3, 1), (64, 1), (-1, 1)]:
        options = GenerationOptions(repeat_penalty=1.5, repeat_last_n=n)
        assert Sampler(options).sample(logits, tokens) == expected, n


def test_sampling_leaves_the_logits_alone() -> None:
    logits = FOUR.copy()
    draw(10, logits, (1, 2), repeat_penalty=2.0)
    assert np.array_equal(logits, FOUR)


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = np.random.default_rng(0).normal(size=500).astype(np.float32)
    runs = []
    for seed in (7, 7, 8):
        sampler = Sampler(GenerationOptions(temperature=1, seed=seed))
        runs.append([sampler.sample(logits, ()) for _ in range(50)])
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("n_vocab", [1, 40, 63, 1000, 49152])
@pytest.mark.parametrize("ties", [False, True])
def test_the_fast_way_to_the_top_is_a_sort(n_vocab: int, ties: bool) -> None:
    from starcoder.sampling.sampler import _top

    logits = np.random.default_rng(n_vocab).normal(size=n_vocab).astype(np.float32)
    logits = np.round(logits, 1) if ties else logits
    for k in {1, min(40, n_vocab), min(900, n_vocab), n_vocab}:
        expected = np.lexsort((np.arange(n_vocab), -logits))[:k]
        assert np.array_equal(_top(logits, k), expected)


def test_a_wide_nucleus_is_found_without_top_k() -> None:
    logits = np.zeros(49152, np.float32)
    logits[7] = 1.0
    shares = draw(300, logits, top_k=0, top_p=0.9)
    assert np.count_nonzero(shares) > 250


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_a_typed_error(bad: float) -> None:
    logits = FOUR.copy()
    logits[2] = bad
    with pytest.raises(LogitsError, match="1 of 4"):
        Sampler(GenerationOptions(temperature=0)).sample(logits, ())
