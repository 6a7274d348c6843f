"""`--prompt-cache FILE`: what was computed of prompts, kept from one run to the next.

Whatever is wrong with the file is one line on stderr: the answer never depends on it. A file that
is something else, or another model's, stays as it is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starcoder.errors import StarcoderError

if TYPE_CHECKING:
    from starcoder.llm import LLM

__all__ = ["PromptCache", "load", "save"]

PromptCache = Annotated[
    Path | None,
    typer.Option("--prompt-cache", metavar="FILE", help="Keep what is computed for the next run."),
]
_log = logging.getLogger("starcoder")


def load(llm: LLM, path: Path) -> None:
    """Take over what the last run has computed, if there is such a file."""
    if path.exists():
        try:
            llm.load_cache(path)
        except StarcoderError as error:
            _log.warning("%s", error)


def save(llm: LLM, path: Path) -> None:
    """Keep what was computed."""
    try:
        llm.save_cache(path)
    except StarcoderError as error:
        _log.warning("%s", error)
