"""Options are declared once: keywords, flags, reports and checks agree, whichever are added."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

import pytest

from starcoder import LLM, GenerationOptions, InputError
from starcoder.cli import flags
from starcoder.cli.generate import generate
from starcoder.sampling.options import DECLARED, Options


class Hostile(dict[Any, Any]):
    """A mapping whose own methods fail."""

    def __iter__(self) -> Any:
        raise RuntimeError

    def keys(self) -> Any:
        raise RuntimeError

    items = keys


class HostileText(str):
    """A text whose own methods fail."""

    def encode(self, *args: object) -> Any:
        raise RuntimeError


def test_methods_take_every_option_as_a_keyword_of_its_type() -> None:
    """But of three kinds, whose plain values are made of what people write."""
    expected = get_type_hints(GenerationOptions) | {
        "logit_bias": Mapping[int, float],
        "stop": str | Sequence[str],
        "json_schema": Mapping[str, Any] | str | None,
    }
    assert get_type_hints(Options) == expected
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


def test_the_command_line_has_a_flag_for_every_option_of_a_single_request() -> None:
    parameters = inspect.signature(generate).parameters
    for name, option in DECLARED.items():
        if name in ("priority", "salt"):
            continue
        (flag,) = parameters[name].annotation.__metadata__
        assert flag.help.startswith(option.help)


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
        ("heal", None),
        ("min_p", 1.1),
        ("typical_p", -0.1),
        ("frequency_penalty", float("nan")),
        ("presence_penalty", 101),
        ("min_tokens", -1),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logprobs", True),
        ("logprobs", 2.0),
        ("logit_bias", None),
        ("logit_bias", [1, 2]),
        ("logit_bias", ("ab", "cd")),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {True: 1}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("-inf")}),
        ("logit_bias", {1: 1.1e4}),
        ("logit_bias", {1: "2"}),
        ("logit_bias", Hostile({1: 2})),
        ("json_schema", Hostile({"type": "null"})),
        ("stop", [None]),
        ("regex", b"a"),
    ],
)
def test_options_out_of_bounds_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: found ") as raised:
        GenerationOptions(**{name: value})
    assert "\n" not in str(raised.value)


def test_a_text_of_a_class_of_its_own_is_plain_characters() -> None:
    options = GenerationOptions(stop=(HostileText("a"),), regex=HostileText("b"))
    assert (options.stop, options.regex) == (("a",), "b")
    assert {type(options.stop[0]), type(options.regex)} == {str}


def test_what_changes_after_it_was_handed_in_changes_nothing() -> None:
    biases, stops, schema = {5: 1.0, 2: -1.0}, ["a", "b"], {"enum": [1]}
    options = GenerationOptions.of({"logit_bias": biases, "stop": stops, "json_schema": schema})
    biases[5] = 9.0
    stops[0] = "c"
    schema["enum"][0] = 2
    assert options.logit_bias == ((2, -1.0), (5, 1.0))
    assert (options.stop, options.json_schema) == (("a", "b"), '{"enum": [1]}')


def test_a_bias_of_a_token_that_there_is_not_is_refused() -> None:
    llm = LLM()
    with pytest.raises(InputError, match=r"^logit_bias: found token id 8192, expected 0 to 8191$"):
        llm.generate("a", logit_bias={8192: 1.0})


def test_the_largest_biases_choose_and_forbid() -> None:
    llm = LLM()
    ids = llm.tokenize("def f")
    assert llm.generate(ids, max_tokens=3, logit_bias={5: 1e4}).tokens == (5, 5, 5)
    free = llm.generate(ids, max_tokens=1).tokens[0]
    assert llm.generate(ids, max_tokens=1, logit_bias={free: -1e4}).tokens[0] != free
