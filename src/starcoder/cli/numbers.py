"""Flags of the command line that are numbers: within bounds, or one wording of what is wrong."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import typer

from starcoder.errors import InputError
from starcoder.sampling.option_kinds import MOST_TOKENS, Real, Whole

__all__ = ["number", "pair", "size", "whole"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def number(kind: Whole | Real, *names: str) -> Any:
    """A flag for a number; the last of `names` is the help text."""
    read, metavar = (int, "N") if isinstance(kind, Whole) else (float, "X")

    def parse(text: str | float) -> float:
        value: object = text
        with suppress(ValueError):
            value = read(text)
        try:
            return kind.checked(metavar, value)
        except InputError as error:
            message = f"found {text!r}, expected {error.expected}"
            raise typer.BadParameter(message) from None

    *flags, help_text = names
    return typer.Option(*flags, parser=parse, metavar=metavar, help=help_text)


def pair(*names: str) -> Any:
    """A flag for a token id and a number, as in 15=-2.5; the last of `names` is the help text."""

    def parse(text: str) -> tuple[int, float]:
        with suppress(ValueError):
            token, number_ = text.split("=")
            return int(token), float(number_)
        message = f"found {text!r}, expected a token id and a number, as in 15=-2.5"
        raise typer.BadParameter(message)

    *flags, help_text = names
    return typer.Option(*flags, parser=parse, metavar="ID=X", help=help_text)


def whole(*names: str, low: int = 0, high: int = MOST_TOKENS) -> Any:
    """A flag for a whole number; the last of `names` is the help text."""
    return number(Whole(low, high), *names)


def size(*names: str) -> Any:
    """A flag for a number of bytes, "500M" or "2G"; the last of `names` is the help text."""

    def parse(text: str | int) -> int:
        found = re.fullmatch("([1-9][0-9]{0,15})([KMG]?)B?", str(text).upper())
        if found is None:
            message = f"found {text!r}, expected a number of bytes, like 500M or 2G"
            raise typer.BadParameter(message)
        return int(found[1]) * _UNITS[found[2]]

    *flags, help_text = names
    return typer.Option(*flags, parser=parse, metavar="N(M|G)", help=help_text)
