"""What a run of the command line gives; the fixture `run` makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    """Exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
