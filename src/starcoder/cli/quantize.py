"""`starcoder quantize`: a model file in smaller types. What it shares is in `rewrite`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from starcoder.errors import InputError

if TYPE_CHECKING:
    from starcoder.convert.quantize import Choice

__all__ = ["quantize"]

# Here and not asked of `mix`, which takes as long to import as numpy does.
_TYPES = (
    "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, q2_k, q3_k, q4_k, q5_k, q6_k, "
    "q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m"
)


def quantize(
    source: Annotated[str, typer.Argument(metavar="IN", help="A file, directory or Hub name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; may be IN.")],
    type_: Annotated[str, typer.Argument(metavar="TYPE", help=f"{_TYPES}, or ggml's number.")],
    output_type: Annotated[
        str | None, typer.Option("--output-type", help="Type of the output matrix.")
    ] = None,
    embedding_type: Annotated[
        str | None, typer.Option("--embedding-type", help="Type of the token embedding.")
    ] = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="PATTERN=T", help="Type of tensors of such a name."),
    ] = None,
    split_max_size: SplitMaxSize = None,
    pre: Pre = None,
    threads: Threads = None,
    force: Force = False,
) -> int:
    """Quantize a model file: GGUF to GGUF, legacy to legacy or to GGUF, by the suffix of OUT."""
    from starcoder import formats
    from starcoder.convert.quantize import use_threads
    from starcoder.model.checkpoint import Format

    choice = _choice(type_, output_type, embedding_type, tensor_type or [])
    path, origin = fetch(source)
    checkpoint = formats.read(path, pre)
    legacy = is_legacy(out, None, checkpoint.format is Format.GGML)
    max_part_bytes = part_bytes(split_max_size, legacy)
    use_threads(threads)
    choice = replace(choice, legacy=legacy)
    rewrite("quantize", checkpoint, out, choice, origin, max_part_bytes, force=force)
    return 0


def _choice(
    type_: str, output_type: str | None, embedding_type: str | None, patterns: list[str]
) -> Choice:
    from starcoder.convert.mix import find_mix, find_type
    from starcoder.convert.quantize import Choice

    pairs = []
    for text in patterns:
        pattern, equals, kind = text.rpartition("=")
        if not (pattern and equals):
            found, expected = repr(text[:80]), "PATTERN=TYPE, like ffn_down=q6_k"
            raise InputError("--tensor-type", found, expected)
        pairs.append((pattern, find_type(kind, "--tensor-type")))
    return Choice(
        mix=find_mix(type_, "TYPE"),
        output_type=None if output_type is None else find_type(output_type, "--output-type"),
        embedding_type=(
            None if embedding_type is None else find_type(embedding_type, "--embedding-type")
        ),
        patterns=pairs,
    )
