"""Flags of the command line that are numbers: within bounds, or one wording of what is wrong."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import typer

from starcoder.errors import InputError
from starcoder.sampling.options import MOST_TOKENS, Real, Whole

__all__ = ["number", "whole"]


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


def whole(*names: str, low: int = 0, high: int = MOST_TOKENS) -> Any:
    """A flag for a whole number; the last of `names` is the help text."""
    return number(Whole(low, high), *names)
