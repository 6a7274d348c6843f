"""What the value of an option can be: each kind checks a caller's value and makes it plain.

Plain values are not changed by whoever handed in what they were made of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starcoder import arguments
from starcoder.errors import InputError

__all__ = ["MOST_TOKENS", "Biases", "Flag", "Kind", "Pairs", "Real", "Schema", "Text", "Texts"]
__all__ += ["Whole"]

Biases = tuple[tuple[int, float], ...]

MOST_TOKENS = (1 << 31) - 1  # of any number of tokens that a user gives
_MAX_BIAS = 1e4  # far above any logit, so that it forbids a token or forces it


class Kind(Protocol):
    """What a value can be."""

    def checked(self, name: str, value: object) -> Any:
        """A caller's value as a plain one; raises InputError, which calls it `name`."""


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
class Text:
    """Any text."""

    def checked(self, name: str, value: object) -> str:
        """A value as a str; raises InputError."""
        return arguments.unicode_text(name, value)


@dataclass(frozen=True, slots=True)
class Texts:
    """A text or several, none of them empty, kept as a tuple."""

    most: int = 64
    longest: int = 1 << 14  # characters

    def checked(self, name: str, value: object) -> tuple[str, ...]:
        """A value as a tuple; raises InputError."""
        if isinstance(value, str):
            value = (value,)
        if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
            raise InputError(name, type(value).__name__, "a text or a list of texts")
        if len(value) > self.most:
            raise InputError(name, f"{len(value):,} texts", f"at most {self.most}")
        return tuple(self._one(name, text) for text in value)

    def _one(self, name: str, value: object) -> str:
        text = arguments.unicode_text(name, value)
        if not text:
            raise InputError(name, "an empty text", "at least one character")
        if len(text) > self.longest:
            expected = f"at most {self.longest:,}"
            raise InputError(name, f"a text of {len(text):,} characters", expected)
        return text


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping of token ids to finite numbers, or its pairs; kept as pairs in the order of ids."""

    def checked(self, name: str, value: object) -> Biases:
        """A value as pairs; raises InputError."""
        pairs: dict[Any, Any] | None = None
        if isinstance(value, (Mapping, list, tuple)):
            with suppress(Exception):  # whatever an object's own methods raise
                pairs = dict(value)
        if pairs is None:
            raise InputError(name, type(value).__name__, "a mapping of token ids to numbers")
        return tuple(
            sorted(
                (
                    arguments.whole(name, token, 0, MOST_TOKENS),
                    arguments.real(name, bias, -_MAX_BIAS, _MAX_BIAS),
                )
                for token, bias in pairs.items()
            )
        )


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema: a mapping, or its JSON text, as which it is kept."""

    def checked(self, name: str, value: object) -> str:
        """A value as JSON text; raises InputError."""
        if isinstance(value, str):
            return arguments.unicode_text(name, value)
        if not isinstance(value, Mapping):
            expected = "a JSON schema: a mapping, or its JSON text"
            raise InputError(name, type(value).__name__, expected)
        try:
            return json.dumps(dict(value), allow_nan=False)
        except Exception as error:  # also what objects in it raise
            found = f"what JSON cannot say: {error}"
            raise InputError(name, found, "what JSON can say") from None
