"""`starcoder convert`: any model in, a GGUF or a legacy ggml file out. `rewrite` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starcoder.cli.rewrite import (
    Force,
    Pre,
    SplitMaxSize,
    Threads,
    fetch,
    is_legacy,
    part_bytes,
    rewrite,
)

__all__ = ["convert"]


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
    split_max_size: SplitMaxSize = None,
    pre: Pre = None,
    threads: Threads = None,
    force: Force = False,
) -> int:
    """Convert a model to a GGUF or a legacy ggml file, of any type."""
    from starcoder import formats
    from starcoder.convert import mix, quantize
    from starcoder.model.checkpoint import Format

    legacy = is_legacy(out, format_)
    max_part_bytes = part_bytes(split_max_size, legacy)
    chosen = mix.find_mix(type_, "--type") if type_ is not None else None
    path, origin = fetch(source, revision)
    checkpoint = formats.read(path, pre)
    if chosen is None and checkpoint.format is Format.HUGGING_FACE:
        chosen = mix.find_mix("f16")
    quantize.use_threads(threads)
    choice = quantize.Choice(mix=chosen, legacy=legacy)
    rewrite("convert", checkpoint, out, choice, origin, max_part_bytes, force=force)
    return 0
