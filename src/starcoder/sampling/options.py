"""GenerationOptions: how a prompt is answered. Every option is declared here, once.

`LLM` takes the options as keywords, the sampler reads their values, the command line makes its
flags of their declarations, and reports print them. A new option is a field of
`GenerationOptions`, its name and type in `Options`, and its use: in `sampler`, mostly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from starcoder import arguments
from starcoder.errors import InputError

__all__ = ["DECLARED", "MOST_TOKENS", "Flag", "GenerationOptions", "Option", "Options"]
__all__ += ["Real", "Whole"]

MOST_TOKENS = (1 << 31) - 1  # of any number of tokens that a user gives
_MAX_SEED = (1 << 64) - 1


# ---- what a value can be ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds."""

    low: int = 0
    high: int = MOST_TOKENS

    def checked(self, name: str, value: object) -> int:
        """A value as an int; raises InputError."""
        return arguments.whole(name, value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Real:
    """A finite number within bounds."""

    low: float = 0
    high: float = math.inf

    def checked(self, name: str, value: object) -> float:
        """A value as a float; raises InputError."""
        return arguments.real(name, value, self.low, self.high)


@dataclass(frozen=True, slots=True)
class Flag:
    """True or False."""

    def checked(self, name: str, value: object) -> bool:
        """A value as a bool; raises InputError."""
        return arguments.flag(name, value)


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of an option. Where the default is None, None may be given as well."""

    name: str
    kind: Whole | Real | Flag
    default: Any
    help: str  # one sentence, which the command line shows too

    def checked(self, value: object) -> Any:
        """A value as a plain int, float or bool; raises InputError."""
        if value is None and self.default is None:
            return None
        return self.kind.checked(self.name, value)


def _option(default: object, kind: Whole | Real | Flag, help: str) -> Any:  # noqa: A002
    return field(default=default, metadata={"kind": kind, "help": help})


# ---- the options --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How a prompt is answered: plain values, checked and converted when made.

    Raises:
        InputError: a value outside its bounds.
    """

    max_tokens: int = _option(200, Whole(), "Most tokens to generate.")
    seed: int | None = _option(None, Whole(-1, _MAX_SEED), "-1: random.")
    temperature: float = _option(0.0, Real(), "0: always the likeliest token.")
    top_k: int = _option(40, Whole(), "Choose among so many tokens; 0: all.")
    top_p: float = _option(0.9, Real(0, 1), "Then among the fewest of this probability.")
    repeat_last_n: int = _option(64, Whole(-1), "Tokens back to penalize; -1: all.")
    repeat_penalty: float = _option(1.0, Real(0.01, 100), "Above 1: fewer repeats.")
    ignore_eos: bool = _option(False, Flag(), "Go on after the model's end token.")

    def __post_init__(self) -> None:
        for name, option in DECLARED.items():
            object.__setattr__(self, name, option.checked(getattr(self, name)))
        if self.seed == -1:
            object.__setattr__(self, "seed", None)

    @classmethod
    def of(cls, options: Options) -> GenerationOptions:
        """The options that a caller gave as keywords.

        Raises:
            InputError: a name that no option has, or a value outside its bounds.
        """
        unknown = options.keys() - DECLARED.keys()
        if unknown:
            raise InputError("option", repr(min(unknown)), f"one of {', '.join(DECLARED)}")
        return cls(**options)

    def keys(self) -> Iterable[str]:
        """The names of the options, so that a method takes a value made once as `**options`."""
        return DECLARED.keys()

    def __getitem__(self, name: str) -> Any:
        """The option of this name."""
        if name not in DECLARED:
            raise KeyError(name)
        return getattr(self, name)

    def nth(self, index: int) -> GenerationOptions:
        """The options of prompt number `index` of a list, which has a seed of its own."""
        if self.seed is None or index == 0:
            return self
        return replace(self, seed=self.seed + index)


class Options(TypedDict, total=False):
    """The same options as keywords of a method, for type checkers and editors."""

    max_tokens: int
    seed: int | None
    temperature: float
    top_k: int
    top_p: float
    repeat_last_n: int
    repeat_penalty: float
    ignore_eos: bool


def _declarations() -> Iterator[Option]:
    for f in fields(GenerationOptions):
        yield Option(f.name, f.metadata["kind"], f.default, f.metadata["help"])


DECLARED = {option.name: option for option in _declarations()}
_LINES = [f"    {o.name}: {o.help} Default: {o.default}." for o in DECLARED.values()]
GenerationOptions.__doc__ = "\n".join((f"{GenerationOptions.__doc__}\n    Args:", *_LINES))
