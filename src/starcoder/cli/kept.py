"""`--prompt-cache FILE`: what was computed of prompts, kept from one run to the next.

Whatever is wrong with the file is one line on stderr: the answer never depends on it. A file that
is something else, or another model's, stays as it is, and is told of once.
"""

from __future__ import annotations

import logging
import os
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


def load(llm: LLM, path: Path) -> bool:
    """Take over what the last run has computed, if there is such a file; whether it is ours."""
    from starcoder.prompt_cache import ForeignFileError

    try:
        if os.path.exists(path):  # `Path.exists` raises for a name that is too long
            llm.load_cache(path)
    except StarcoderError as error:
        _log.warning("%s", error)
        return not isinstance(error, ForeignFileError)
    return True


def save(llm: LLM, path: Path) -> None:
    """Keep what was computed."""
    try:
        llm.save_cache(path)
    except StarcoderError as error:
        _log.warning("%s", error)
