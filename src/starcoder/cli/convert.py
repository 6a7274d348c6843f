"""`starcoder convert`: any model in, a GGUF or a legacy ggml file out. `quantize` shares its work.

Everything that is said goes to stderr.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starcoder import __version__
from starcoder.cli.progress import Progress
from starcoder.errors import InputError

if TYPE_CHECKING:
    from starcoder.checkpoint import Checkpoint
    from starcoder.quantize import Choice

__all__ = ["convert", "fetch", "is_legacy", "rewrite"]

_FORMATS = {"gguf": False, "ggml": True}
_SUFFIXES = {".gguf": False, ".bin": True}

Threads = Annotated[
    int | None, typer.Option("-t", "--threads", min=1, max=1024, help="Default: all cores.")
]


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A Hub name, directory or file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    type_: Annotated[
        str | None, typer.Option("--type", help="f16, q4_0, ... Default: the source's, or f16.")
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="gguf or ggml. Default: by OUT's suffix.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")
    ] = None,
    threads: Threads = None,
) -> int:
    """Convert a model to a GGUF or a legacy ggml file, of any type."""
    from starcoder import formats, mix, quantize

    legacy = is_legacy(out, format_)
    chosen = mix.find_mix(type_) if type_ is not None else None
    path, origin = fetch(source, revision)
    checkpoint = formats.read(path)
    if chosen is None and checkpoint.format == "Hugging Face":
        chosen = mix.find_mix("f16")
    quantize.use_threads(threads)
    rewrite("convert", checkpoint, out, quantize.Choice(mix=chosen, legacy=legacy), origin)
    return 0


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


def rewrite(
    task: str, checkpoint: Checkpoint, out: Path, choice: Choice, origin: dict[str, str]
) -> None:
    """Write the checkpoint to `out` in the types of `choice`, and say what becomes of it."""
    from starcoder import formats, quantize

    started = time.monotonic()
    types, notes = quantize.plan(checkpoint, choice)
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
            file_type=choice.mix.number if choice.mix else None,
            origin=origin,
            on_start=progress.start,
            on_bytes=progress.advance,
        )
    seconds = time.monotonic() - started
    name = choice.mix.name if choice.mix else checkpoint.type_name
    _say(task, f"quant size = {nbytes / 2**20:.2f} MB | {name}")
    speed = (checkpoint.nbytes + nbytes) / 1e6 / max(seconds, 1e-9)
    _say(task, f"total time = {seconds:.2f} s, {speed:.0f} MB/s read and written")
    _say(task, f"wrote {out}")


def origin_of(source: str, revision: str | None = None) -> dict[str, str]:
    """Keys of a GGUF file that say where its weights came from; never a folder of this machine."""
    keys = {"starcoder_py.version": __version__, "starcoder_py.source": Path(source).name}
    return keys if revision is None else keys | {"starcoder_py.revision": revision}


def fetch(source: str, revision: str | None = None) -> tuple[Path, dict[str, str]]:
    """Where the model is, from the Hub if it is a name of one there; and what to note of that."""
    from starcoder import hub

    with Progress("download") as progress:
        found = hub.find(source, revision, progress)
    if found.repo is None:
        return found.path, origin_of(source)
    keys = origin_of(found.repo, found.commit) | {"starcoder_py.source": found.repo}
    if found.path.is_dir():  # a file has a name of its own
        keys["general.name"] = found.repo.split("/")[-1]
    return found.path, keys


# ------------------------------------------------------------------------------------------------


def _say(task: str, line: str) -> None:
    print(f"{task}: {line}", file=sys.stderr)
