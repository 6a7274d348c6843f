"""Arguments from Python callers, made the plain values that the rest works with.

Whatever stands for a number is converted (numpy's, Decimal, Fraction, what has `__index__`), so
that nothing of another type, with its own rules of overflow or rounding, goes any further. What
does not fit is one InputError. A bool is a number nowhere here: as a count it is a mistake.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator, Mapping, Set
from typing import Any

from starcoder.errors import InputError

__all__ = ["flag", "is_whole", "path", "real", "text", "token_ids", "unicode_text", "whole"]

_BYTES = (bytes, bytearray, memoryview)
_DECODE = "decode it first, for example with .decode()"
_IDS = "a list of token ids (whole numbers)"
_HUGE = 1 << 63  # far from any id, and short enough to be shown
_MAX_SHOWN = 60  # characters of a value in a message


def whole(name: str, value: object, low: int, high: int, advice: str = "") -> int:
    """An int from `low` to `high`.

    Raises:
        InputError: no whole number, or one outside its bounds.
    """
    number: int | None
    if type(value) is int:  # nothing is tried: an interrupt in there would be taken for its fault
        number = value
    else:
        try:
            number = _index(value)
        except Exception:  # whatever an object's own conversion raises
            number = None
    if number is None or not low <= number <= high:
        raise InputError(name, _shown(value), f"a whole number from {low} to {high}", advice)
    return number


def real(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A finite float from `low` to `high`.

    Raises:
        InputError: no number, or one outside its bounds.
    """
    if type(value) is float:
        number = value
    else:
        try:
            number = math.nan if _is_no_number(value) else float(value)  # type: ignore[arg-type]
        except Exception:  # whatever an object's own conversion raises
            number = math.nan
    if not (math.isfinite(number) and low <= number <= high):
        bounds = (
            f"a number from {low} to {high}" if math.isfinite(high) else f"a number, at least {low}"
        )
        raise InputError(name, _shown(value), bounds)
    return number


def flag(name: str, value: object) -> bool:
    """A bool, or a 0 or 1 that stands for it.

    Raises:
        InputError: anything else.
    """
    try:
        if type(value).__name__ in ("bool", "bool_"):  # numpy's has no __index__
            return bool(value)
        return whole(name, value, 0, 1) == 1
    except InputError:
        raise InputError(name, _shown(value), "True or False") from None


def path(name: str, value: object, expected: str = "a path or a Hub id") -> str:
    """A path, or a name that stands for one, as text.

    Raises:
        InputError: anything but text, bytes or an `os.PathLike`.
    """
    if type(value) is str:
        decoded = value
    else:
        try:
            decoded = os.fsdecode(value)  # type: ignore[arg-type]
        except Exception:  # whatever an object's own conversion raises
            decoded = ""
    if not decoded:
        raise InputError(name, _shown(value), expected)
    return decoded


def text(name: str, value: object) -> str:
    """A str.

    Raises:
        InputError: anything else.
    """
    if not isinstance(value, str):
        advice = _DECODE if isinstance(value, _BYTES) else ""
        raise InputError(name, type(value).__name__, "text", advice)
    return value


def unicode_text(name: str, value: object) -> str:
    """A plain str that UTF-8 can spell.

    Raises:
        InputError: anything else.
    """
    checked = str.__str__(text(name, value))  # of a class of its own, the characters
    try:
        checked.encode()
    except UnicodeEncodeError as error:
        found = f"U+{ord(checked[error.start]):04X}, half of a character"
        raise InputError(name, found, "Unicode text", "read it as UTF-8") from None
    return checked


def token_ids(name: str, value: object, expected: str = _IDS, advice: str = "") -> list[int]:
    """Token ids in their order, as a list of ints.

    `expected` and `advice` are what to say of something that is no list.

    Raises:
        InputError: what holds no whole numbers, has no order, or is bytes.
    """
    found = type(value).__name__
    if isinstance(value, _BYTES):
        raise InputError(name, found, expected, _DECODE)
    ids: list[int] = []
    try:
        if isinstance(value, (str, Set, Mapping)):
            raise TypeError
        tokens = iter(value)  # type: ignore[call-overload]
    except TypeError:
        raise InputError(name, found, expected, advice) from None
    for i, token in enumerate(tokens):
        try:
            ids.append(_index(token))
        except TypeError:
            if isinstance(value, Iterator):  # of texts, perhaps
                raise InputError(name, found, expected, advice) from None
            raise InputError(name, f"{_shown(token)} at index {i}", "whole numbers") from None
    if ids and not (min(ids) >= -_HUGE and max(ids) < _HUGE):
        raise InputError(name, "a number of more than 64 bits", expected, advice)
    return ids


def is_whole(value: object) -> bool:
    """Whether a value stands for one whole number."""
    try:
        _index(value)
    except TypeError:
        return False
    return True


# ------------------------------------------------------------------------------------------------


def _index(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _is_no_number(value: object) -> bool:
    """What `float` takes all the same: text that spells a number, arrays of one, bools."""
    return isinstance(value, (bool, str, *_BYTES)) or getattr(value, "ndim", 0) != 0


def _shown(value: object) -> str:
    """A value as a message has it: in one line, and short."""
    try:
        line = " ".join(repr(value).split())
    except Exception:  # a number of too many digits; whatever an object's own `repr` raises
        return f"a {type(value).__name__}"
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}..."
