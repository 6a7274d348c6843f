"""GenerationOptions: how a prompt is answered. Every option is declared here, once.

`LLM` takes the options as keywords, the sampler reads their values, the command line makes its
flags of their declarations, and reports print them. A new option is a field of
`GenerationOptions`, its name and type in `Options`, and its use: in `sampler`, mostly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict

from starcoder.errors import InputError
from starcoder.sampling.option_kinds import (
    Biases,
    Flag,
    Kind,
    Pairs,
    Real,
    Schema,
    Text,
    Texts,
    Whole,
)

__all__ = ["DECLARED", "GenerationOptions", "Option", "Options"]

_MAX_SEED = (1 << 64) - 1
_FORMS = ("json_schema", "regex", "grammar")  # of an answer, which has one at most


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of an option. Where the default is None, None may be given as well."""

    name: str
    kind: Kind
    default: Any
    help: str  # one sentence, which the command line shows too

    def checked(self, value: object) -> Any:
        """A caller's value as a plain one; raises InputError."""
        if value is None and self.default is None:
            return None
        return self.kind.checked(self.name, value)


def _option(default: object, kind: Kind, help: str) -> Any:  # noqa: A002
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
    typical_p: float = _option(1.0, Real(0, 1), "Then among the most typical of this share.")
    min_p: float = _option(0.0, Real(0, 1), "Not less likely than the likeliest times this.")
    repeat_penalty: float = _option(1.0, Real(0.01, 100), "Above 1: fewer repeats.")
    frequency_penalty: float = _option(0.0, Real(-100, 100), "For each time a token was said.")
    presence_penalty: float = _option(0.0, Real(-100, 100), "Where a token was said at all.")
    logit_bias: Biases = _option((), Pairs(), "Added to the logits of ids.")  # noqa: RUF009
    min_tokens: int = _option(0, Whole(), "No end before so many tokens.")
    ignore_eos: bool = _option(False, Flag(), "Go on after the model's end token.")
    heal: bool = _option(True, Flag(), "Choose the last tokens of a text anew.")
    stop: tuple[str, ...] = _option((), Texts(), "Text before which the answer ends.")
    logprobs: int | None = _option(None, Whole(0, 20), "Log probabilities, of so many others too.")
    json_schema: str | None = _option(None, Schema(), "Answer in JSON that fits this schema.")
    regex: str | None = _option(None, Text(), "Answer what this regular expression matches.")
    grammar: str | None = _option(None, Text(), "Answer what this grammar (Lark's) makes.")
    max_prompt_ms: float | None = _option(None, Real(), "Evaluate what fits, the end first.")
    max_time_ms: float | None = _option(None, Real(), "Whole lines, as many as fit.")
    priority: int = _option(0, Whole(-100, 100), "The lowest number is the most urgent.")
    salt: str = _option("", Text(), "Computed prompts are shared within one salt alone.")

    def __post_init__(self) -> None:
        for name, option in DECLARED.items():
            object.__setattr__(self, name, option.checked(getattr(self, name)))
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise InputError(" and ".join(forms), f"{len(forms)} forms", "one of them")
        if forms and self.ignore_eos:
            raise InputError(
                "ignore_eos", "True", f"False, as {forms[0]} says where an answer ends"
            )

    @property
    def form(self) -> str | None:
        """The name of the option that says what form the answer has; None: any."""
        return next((name for name in _FORMS if getattr(self, name) is not None), None)

    @property
    def shifts_logits(self) -> bool:
        """Whether any logit is changed before a token is chosen."""
        penalties = (self.repeat_penalty != 1, self.frequency_penalty, self.presence_penalty)
        return bool(self.logit_bias or (self.repeat_last_n and any(penalties)))

    @classmethod
    def of(cls, options: Options) -> GenerationOptions:
        """The options that a caller gave as keywords.

        Raises:
            InputError: a name that no option has, or a value outside its bounds.
        """
        unknown = options.keys() - DECLARED.keys()
        if unknown:
            raise InputError("option", repr(min(unknown)), f"one of {', '.join(DECLARED)}")
        return cls(**options)  # type: ignore[arg-type]  # it checks and converts each

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
    typical_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]
    min_tokens: int
    ignore_eos: bool
    heal: bool
    stop: str | Sequence[str]
    logprobs: int | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    grammar: str | None
    max_prompt_ms: float | None
    max_time_ms: float | None
    priority: int
    salt: str


def _declarations() -> Iterator[Option]:
    for f in fields(GenerationOptions):
        yield Option(f.name, f.metadata["kind"], f.default, f.metadata["help"])


DECLARED = {option.name: option for option in _declarations()}
_LINES = [f"    {o.name}: {o.help} Default: {o.default}." for o in DECLARED.values()]
GenerationOptions.__doc__ = "\n".join((f"{GenerationOptions.__doc__}\n    Args:", *_LINES))
