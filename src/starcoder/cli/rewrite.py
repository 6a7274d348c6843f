"""What `convert` and `quantize` share: their options, and a model written to another file.

Everything that is said goes to stderr.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starcoder import __version__
from starcoder.cli.numbers import whole
from starcoder.cli.progress import Progress
from starcoder.errors import InputError, printable

if TYPE_CHECKING:
    from starcoder.convert.quantize import Choice
    from starcoder.model.checkpoint import Checkpoint

__all__ = [
    "Force",
    "Pre",
    "SplitMaxSize",
    "Threads",
    "fetch",
    "is_legacy",
    "part_bytes",
    "rewrite",
]

_FORMATS = {"gguf": False, "ggml": True}
_SIZE = "a whole number and M or G (powers of ten), like 500M"
_SUFFIXES = {".gguf": False, ".bin": True}

Threads = Annotated[int | None, whole("-t", "--threads", "Default: all cores.", low=1, high=1024)]
Pre = Annotated[
    str | None,
    typer.Option("--pre", metavar="NAME", help="Split text as refact, starcoder or gpt-2 does."),
]
SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size", metavar="N(M|G)", help="Write parts of at most N MB or GB each."
    ),
]

Force = Annotated[
    bool, typer.Option("--force", help="Write a .bin file though it cannot say all of the model.")
]


def is_legacy(out: Path, name: str | None, default: bool | None = None) -> bool:
    """Whether OUT is to be a legacy file: as named, or by its suffix."""
    if name is not None:
        if name.lower() not in _FORMATS:
            raise InputError("--format", repr(name[:40]), " or ".join(_FORMATS))
        return _FORMATS[name.lower()]
    legacy = _SUFFIXES.get(out.suffix.lower(), default)
    if legacy is None:
        found, expected = f"the suffix {out.suffix!r}", "a name that ends in .gguf or .bin"
        raise InputError(str(out), found, expected, "or give --format gguf or --format ggml")
    return legacy


def part_bytes(text: str | None, legacy: bool) -> int | None:
    """`--split-max-size` in bytes; its units are powers of ten, as llama-gguf-split's are."""
    if text is None:
        return None
    size = re.fullmatch("([1-9][0-9]{0,5})([MG])B?", text.upper())
    if size is None:
        raise InputError("--split-max-size", repr(text[:40]), _SIZE)
    if legacy:
        advice = "write a GGUF file, or one file"
        raise InputError("--split-max-size", "a legacy file in parts", "one file", advice)
    return int(size[1]) * {"M": 10**6, "G": 10**9}[size[2]]


def rewrite(
    task: str,
    checkpoint: Checkpoint,
    out: Path,
    choice: Choice,
    origin: dict[str, str],
    max_part_bytes: int | None = None,
    *,
    force: bool = False,
) -> None:
    """Write the checkpoint to `out` in the types of `choice`, and say what becomes of it.

    With `force` what a legacy file cannot say is a warning, and else an error.
    """
    from starcoder import formats
    from starcoder.convert import quantize

    started = time.monotonic()
    types, notes = quantize.plan(checkpoint, choice)
    if choice.legacy:
        lost = formats.legacy_losses(checkpoint.vocab)
        notes += [f"{out}: {loss}" for loss in (*(lost.grave if force else ()), *lost.slight)]
    for note in notes:
        _say(task, f"warning: {note}")
    _say(task, f"model size = {checkpoint.nbytes / 2**20:.2f} MB | {checkpoint.type_name}")
    weights = quantize.quantize(checkpoint, types, legacy=choice.legacy)
    with Progress(task) as progress:
        nbytes = formats.write(
            out,
            checkpoint,
            weights,
            legacy=choice.legacy,
            force=force,
            file_type=choice.mix.number if choice.mix else None,
            origin=_origin(checkpoint.source) | origin,
            max_part_bytes=max_part_bytes,
            on_start=progress.start,
            on_bytes=progress.advance,
        )
    seconds = time.monotonic() - started
    name = choice.mix.name if choice.mix else checkpoint.type_name
    _say(task, f"quant size = {nbytes / 2**20:.2f} MB | {name}")
    speed = (checkpoint.nbytes + nbytes) / 1e6 / max(seconds, 1e-9)
    _say(task, f"total time = {seconds:.2f} s, {speed:.0f} MB/s read and written")
    if max_part_bytes is None:
        _say(task, f"wrote {out}")
    else:
        paths = formats.part_paths(out, checkpoint, weights, max_part_bytes)
        n, first = len(paths), paths[0]
        which = f"parts, the first {first}; any of them opens the model"
        _say(task, f"wrote {n} {which}" if n > 1 else f"wrote 1 part, {first}")
        older = formats.older_parts(out, checkpoint, weights, max_part_bytes)
        if older:
            _say(task, f"warning: of another set of parts there are still {len(older)}: {older[0]}")


def fetch(source: str, revision: str | None = None) -> tuple[Path, dict[str, str]]:
    """Where the model is, from the Hub if it is a name of one there; and what to note of that."""
    from starcoder import hub

    with Progress("download") as progress:
        found = hub.find(source, revision, progress)
    if found.repo is None:
        return found.path, {}
    keys = {"starcoder_py.source": found.repo}
    if found.commit is not None:
        keys["starcoder_py.revision"] = found.commit
    if found.path.is_dir():  # a file has a name of its own
        keys["general.name"] = found.repo.split("/")[-1]
    return found.path, keys


# ------------------------------------------------------------------------------------------------


def _say(task: str, line: str) -> None:
    print(f"{task}: {line}", file=sys.stderr)


def _origin(source: str) -> dict[str, str]:
    """Keys of a GGUF file that say where its weights came from; never a path of this machine."""
    name = printable(os.path.basename(os.path.abspath(source)))
    return {"starcoder_py.version": __version__, "starcoder_py.source": name}
