"""A flag of the command line for each option of `GenerationOptions`, under ggml's names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from starcoder.cli.numbers import number
from starcoder.sampling.options import DECLARED, Flag, Option, Real, Whole

__all__ = ["LABELS", "takes_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])

# Where ggml's program has other names than --top-k for top_k, and other defaults than LLM.
_NAMES = {
    "max_tokens": ("-n", "--n-predict"),
    "seed": ("-s", "--seed"),
    "temperature": ("--temp",),
}
_DEFAULTS = {"temperature": 1.0, "seed": -1}
_TYPES: dict[type, type] = {Whole: int, Real: float, Flag: bool}

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
        own[at:at] = map(_parameter, DECLARED.values())
        command.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        return command

    return give


def _parameter(option: Option) -> inspect.Parameter:
    names = _NAMES.get(option.name, (f"--{option.name.replace('_', '-')}",))
    if isinstance(option.kind, Flag):
        flag = typer.Option(*names, help=option.help)
    else:
        flag = number(option.kind, *names, option.help)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=_DEFAULTS.get(option.name, option.default),
        annotation=Annotated[_TYPES[type(option.kind)], flag],
    )
