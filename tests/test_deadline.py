"""Answers within their time: the part of a prompt that fits, and whole lines."""

from __future__ import annotations

import random

import pytest

from starcoder.engine import Engine, Event
from starcoder.sampling.options import GenerationOptions
from tests.helpers.fake_model import N_CTX, FakeModel

TOKEN = 0.01  # seconds


class Ends:
    """The ends of a prompt as its windows, of every length that is a multiple of four."""

    n_asked = 0  # windows that were made

    def __init__(self, prompt: list[int]) -> None:
        self._prompt = prompt
        self.lengths = [*range(4, len(prompt), 4), len(prompt)]

    def window(self, i: int) -> list[int]:
        self.n_asked += 1
        return self._prompt[-self.lengths[i] :]


def warm() -> tuple[Engine, FakeModel]:
    """An engine that knows what steps take."""
    model = FakeModel(seconds=TOKEN)
    made = Engine(model, n_ctx=N_CTX, n_positions=8 * N_CTX, n_batch=64, clock=model.clock)
    for i in range(8):
        made.submit([i] * (5 + 5 * i), GenerationOptions(max_tokens=8))
        run(made)
    model.batches.clear()
    return made, model


def run(made: Engine) -> list[Event]:
    events = []
    while not made.is_idle:
        events += made.step()
    return events


def ask(made: Engine, prompt: list[int], n: int = 4, **ms: float) -> tuple[list[int], Event]:
    options = GenerationOptions(max_tokens=n, **ms)  # type: ignore[arg-type]
    request = made.submit(prompt, options, windows=Ends(prompt))
    events = [event for event in run(made) if event.id == request]
    return [event.token for event in events if event.token is not None], events[-1]


def test_a_prompt_for_which_there_is_time_is_evaluated_whole() -> None:
    made, _ = warm()
    tokens, last = ask(made, [9] * 40, max_prompt_ms=600)
    assert (len(tokens), last.finish_reason, last.stats.skipped_tokens) == (4, "length", 0)


def test_of_a_prompt_that_is_too_long_its_end_is_evaluated_as_long_as_fits() -> None:
    made, model = warm()
    prompt = list(range(48))
    started = model.now
    tokens, last = ask(made, prompt, 1, max_prompt_ms=250)
    assert 0.15 <= model.now - started <= 0.25
    n = 48 - last.stats.skipped_tokens
    assert n >= 16
    assert tokens == ask(warm()[0], prompt[-n:], 1)[0], "as if no more had been asked"


def test_what_was_computed_makes_the_next_answer_quick() -> None:
    made, model = warm()
    prompt = list(range(40))
    _, first = ask(made, prompt, 1, max_prompt_ms=250)
    started = model.now
    _, second = ask(made, [*prompt, 7, 7, 7, 7], 1, max_prompt_ms=250)
    assert model.now - started < 0.1
    assert second.stats.cached_tokens >= 40 - first.stats.skipped_tokens
    _, third = ask(made, [*prompt, 7, 7, 7, 7], 1)
    assert third.stats.skipped_tokens == 0


def test_an_answer_that_takes_too_long_ends_with_what_is_there() -> None:
    made, model = warm()
    started = model.now
    tokens, last = ask(made, [9] * 4, 50, max_time_ms=200)
    assert last.finish_reason == "time"
    assert 0.15 <= model.now - started <= 0.2
    assert len(tokens) >= 10


def test_no_time_at_all_is_an_empty_answer() -> None:
    made, model = warm()
    started = model.now
    assert ask(made, [9] * 4, max_time_ms=0)[1].finish_reason == "time"
    assert model.now == started


def test_who_waits_in_line_counts_that_as_time() -> None:
    made, model = warm()
    made.submit([8] * 50, GenerationOptions(max_tokens=10))
    made.step()
    came = model.now - 0.15
    request = made.submit(
        [1] * 8, GenerationOptions(max_time_ms=100), came=came, windows=Ends([1] * 8)
    )
    events = [event for event in made.step() if event.id == request]
    assert [event.finish_reason for event in events] == ["time"]


def test_the_prompts_in_line_are_not_cut_again_at_every_step() -> None:
    model = FakeModel(seconds=TOKEN)
    made = Engine(model, n_ctx=N_CTX, n_positions=N_CTX, n_batch=64, clock=model.clock)
    made.submit([8] * 20, GenerationOptions(max_tokens=40))
    made.step()
    line = [Ends([i] * 48) for i in range(6)]
    for windows in line:
        options = GenerationOptions(max_tokens=2, max_time_ms=1e6)
        made.submit(windows.window(11), options, windows=windows)
    for _ in range(30):
        made.step()
    assert made.stats().n_waiting == 6
    assert [windows.n_asked for windows in line[1:]] == [1] * 5, "only the first is looked at"
    assert sum(event.finish_reason == "length" for event in run(made)) == 7


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_late_whatever_the_neighbors_do(seed: int) -> None:
    rng = random.Random(seed)
    made, model = warm()
    limits, ended = dict[int, float](), dict[int, float]()
    for _ in range(12):
        prompt = [rng.randrange(48) for _ in range(rng.randrange(1, 50))]
        limit = rng.choice([None, 20, 80, 200, 400, 900])
        options = GenerationOptions(max_tokens=rng.randrange(1, 14), max_time_ms=limit)
        request = made.submit(prompt, options, windows=Ends(prompt))
        if limit is not None:
            limits[request] = model.now + limit / 1e3
        for _ in range(rng.randrange(3)):
            ended |= {e.id: model.now for e in made.step() if e.finish_reason}
    while not made.is_idle:
        ended |= {event.id: model.now for event in made.step() if event.finish_reason}
    assert max(ended[request] - end for request, end in limits.items()) <= 0.05


class SaysAgain:
    """The first `n` tokens that are chosen say the end of the prompt again."""

    is_over = False

    def __init__(self, n: int) -> None:
        self._n = n

    def allowed(self) -> None:
        return None

    def take(self, token: int) -> None:
        self._n -= 1

    @property
    def is_in_prompt(self) -> bool:
        return self._n >= 0


def test_what_was_said_again_stays_when_its_request_is_put_off() -> None:
    """Of a prompt whose answer has not begun, but whose end was chosen anew, nothing is cut."""
    model = FakeModel(seconds=TOKEN)
    made = Engine(model, n_ctx=N_CTX, n_positions=N_CTX, n_batch=64, clock=model.clock)
    prompt = list(range(24))
    options = GenerationOptions(max_tokens=6, max_time_ms=1e6, priority=1)
    windows, again = Ends(prompt), SaysAgain(8)
    late = made.submit(prompt, options, windows=windows, constraint=again)
    events = [event for _ in range(4) for event in made.step()]
    made.submit([40] * 40, GenerationOptions(max_tokens=2))
    events += run(made)
    tokens = [event.token for event in events if event.id == late and event.token is not None]
    other = Engine(FakeModel(), n_ctx=N_CTX, n_positions=N_CTX, n_batch=64)
    other.submit(prompt, GenerationOptions(max_tokens=14))
    assert tokens == [event.token for event in run(other)]
