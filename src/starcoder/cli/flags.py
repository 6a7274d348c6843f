"""A flag of the command line for each option of `GenerationOptions`, under ggml's names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from starcoder.cli.numbers import number, pair
from starcoder.sampling.option_kinds import Flag, Pairs, Real, Schema, Text, Texts, Whole
from starcoder.sampling.options import DECLARED, Option

__all__ = ["LABELS", "takes_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Where ggml's program has other names than --top-k for top_k, and other defaults than LLM.
_NAMES = {
    "max_tokens": ("-n", "--n-predict"),
    "seed": ("-s", "--seed"),
    "temperature": ("--temp",),
}

_NO_FLAGS = ("priority", "salt")  # between requests; a command line has one
_DEFAULTS = {"temperature": 1.0, "seed": -1}
_TYPES: dict[type, Any] = {
    Whole: int,
    Real: float,
    Flag: bool,
    Text: str,
    Schema: str,
    Texts: list[str],
    Pairs: list[str],
}

LABELS = {name: _NAMES.get(name, (name,))[-1].lstrip("-") for name in DECLARED}  # in reports


def takes_options(before: str) -> Callable[[_Command], _Command]:
    """Gives a command a flag for every option, in the place of its `**options`.

    In the help they stand before the parameter of that name.
    """

    def give(command: _Command) -> _Command:
        signature = inspect.signature(command, eval_str=True)
        *own, keywords = signature.parameters.values()
        assert keywords.kind is inspect.Parameter.VAR_KEYWORD
        at = list(signature.parameters).index(before)
        own[at:at] = map(_parameter, _with_flags())
        command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return command

    return give


def _with_flags() -> list[Option]:
    return [option for option in DECLARED.values() if option.name not in _NO_FLAGS]


def _parameter(option: Option) -> inspect.Parameter:
    default = _DEFAULTS.get(option.name, option.default)
    type_ = _TYPES[type(option.kind)]
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=list(default) if isinstance(default, tuple) else default,
        annotation=Annotated[type_ | None if default is None else type_, _flag(option)],
    )


def _flag(option: Option) -> Any:
    kind, dashed = option.kind, option.name.replace("_", "-")
    names = _NAMES.get(option.name, (f"--{dashed}",))
    if isinstance(kind, (Whole, Real)):
        return number(kind, *names, option.help)
    if isinstance(kind, Flag) and option.default:
        names = (f"--{dashed}/--no-{dashed}",)
    if isinstance(kind, Pairs):
        return pair(*names, f"{option.help} May be repeated.")
    again = " May be repeated." if isinstance(kind, Texts) else ""
    metavar = None if isinstance(kind, Flag) else "TEXT"
    return typer.Option(*names, metavar=metavar, help=option.help + again)
