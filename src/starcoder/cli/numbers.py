"""Options of the command line that are numbers: within bounds, or one wording of what is wrong."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import typer

__all__ = ["real", "whole"]


def whole(*names: str, low: int = 0, high: int = (1 << 31) - 1) -> Any:
    """An option for a whole number; the last of `names` is the help text."""

    def parse(text: str | int) -> int:
        with suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        raise typer.BadParameter(f"found {text!r}, expected a whole number from {low} to {high}")

    *flags, help_text = names
    return typer.Option(*flags, parser=parse, metavar="N", help=help_text)


def real(flag: str, help_text: str, low: float = 0, high: float = 1e6) -> Any:
    """An option for a number."""

    def parse(text: str | float) -> float:
        with suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise typer.BadParameter(f"found {text!r}, expected a number from {low:g} to {high:g}")

    return typer.Option(flag, parser=parse, metavar="X", help=help_text)
