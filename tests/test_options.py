"""Options are declared once: keywords, flags, reports and checks agree, whichever are added."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_type_hints

import pytest

from starcoder import GenerationOptions, InputError
from starcoder.cli import flags
from starcoder.cli.generate import generate
from starcoder.sampling.options import DECLARED, Options


def test_methods_take_every_option_as_a_keyword_of_its_type() -> None:
    assert get_type_hints(Options) == get_type_hints(GenerationOptions)
    assert list(Options.__annotations__) == list(DECLARED)


def test_options_are_plain_values_that_nobody_changes() -> None:
    options = GenerationOptions.of({"max_tokens": 5, "temperature": 1})
    assert (options.max_tokens, options.temperature, options.seed) == (5, 1.0, None)
    assert type(options.temperature) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.top_k = 1  # type: ignore[misc]


def test_a_name_that_no_option_has_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="option: found 'tempreture', expected one of max_tokens"):
        GenerationOptions.of({"tempreture": 1})  # type: ignore[typeddict-unknown-key]


def test_each_prompt_of_a_list_draws_from_a_seed_of_its_own() -> None:
    assert [GenerationOptions(seed=5).nth(i).seed for i in range(3)] == [5, 6, 7]
    assert [GenerationOptions(seed=seed).nth(3).seed for seed in (None, -1)] == [None, None]


def test_the_command_line_has_a_flag_for_every_option() -> None:
    parameters = inspect.signature(generate).parameters
    for name, option in DECLARED.items():
        (flag,) = parameters[name].annotation.__metadata__
        assert flag.help == option.help


def test_help_and_reports_have_every_option() -> None:
    assert all(name in str(GenerationOptions.__doc__) for name in DECLARED)
    assert set(flags.LABELS) == set(DECLARED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 1.1),
        ("top_p", -0.1),
        ("repeat_last_n", -2),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", float("nan")),
        ("seed", -2),
        ("seed", 1 << 64),
        ("seed", "x"),
        ("max_tokens", -1),
        ("ignore_eos", 2),
    ],
)
def test_options_out_of_bounds_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        GenerationOptions(**{name: value})
