"""Models by their names on the Hub: files from there into the cache of huggingface_hub.

`_names` reads what the user wrote, and a path is all that most runs need; the rest is imported for
a name alone, as it takes a tenth of the time in which a model on disk is loaded. `_find` is the
order of things, `_choice` finds the files that are meant, `_download` brings them, `_claim` says
which process writes, `_cache` knows what is there and puts it in place, `_library` is all we use of
huggingface_hub, and `_settings` finds what is wrong of its settings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from starcoder.hub._names import parse
from starcoder.hub._progress import Progress

__all__ = ["Found", "Progress", "find", "resolve"]


class Found(NamedTuple):
    """A model: where it is, and for one from the Hub its `owner/name` and commit."""

    path: Path
    repo: str | None = None
    commit: str | None = None


def resolve(
    source: str | bytes | os.PathLike[Any],
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The path of a model: `source` itself, or where the model of this name was put.

    What exists as a file or directory is never looked for on the Hub. The token of a gated or
    private model is taken from HF_TOKEN, or from where `hf auth login` left it. Files that are
    there already are not asked for again; one that broke off goes on where it was.

    >>> resolve("bigcode/tiny_starcoder_py")  # doctest: +SKIP
    PosixPath('.../models--bigcode--tiny_starcoder_py/snapshots/...')

    Args:
        source: a path; or `owner/name`, with `@revision` and with `:q4_0` or `:file.gguf` if need
            be; or the same after `hf://`; or the URL of a model's page.
        revision: a branch, tag or commit of a model on the Hub; by default its main branch.
        progress: is told of the bytes; by default a bar shows them on a terminal.

    Raises:
        InputError: no such model or revision, no permission, no network, no room, or files that
            are not what the Hub says they are.
        FormatError: its config.json says that it is no model of ours, before its weights come.
    """
    return find(source, revision, progress).path


def find(
    source: str | bytes | os.PathLike[Any],
    revision: str | None = None,
    progress: Progress | None = None,
) -> Found:
    """As `resolve`, with the model's id and commit."""
    name = parse(source, revision)
    if isinstance(name, Path):
        return Found(name)
    from starcoder.hub import _find

    copy = _find.find(name, progress)
    return Found(copy.path, name.repo, copy.commit)
