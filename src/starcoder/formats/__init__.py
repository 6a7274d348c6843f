"""Files: any model on disk becomes one plain `Checkpoint`. Each format has a folder of its own.

What a file is goes by its first bytes, never by its name; what is no model, `strangers` names. A
new format is a folder whose `reader` has `MAGIC` and `read`, and a line in `_read`; its writer, if
it has one, stands beside. What formats share is in `io`, and for vocabularies in `byte_level`,
`merges` and `special`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starcoder import arguments
from starcoder.core.tensor import Weights
from starcoder.errors import InputError, WriteError, printable
from starcoder.formats.byte_level import PRE_TOKENIZERS
from starcoder.formats.io.mapped import map_file
from starcoder.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from starcoder.formats.carried import carried_text
    from starcoder.formats.ggml.losses import legacy_losses
    from starcoder.formats.gguf.writer import older_parts, part_paths
    from starcoder.formats.hf.reader import check_config
    from starcoder.formats.io.atomic import write_file

__all__ = [
    "carried_text",
    "check_config",
    "legacy_losses",
    "older_parts",
    "part_paths",
    "read",
    "write",
    "write_file",
]

_HOMES = {
    "carried_text": "carried",
    "check_config": "hf.reader",
    "legacy_losses": "ggml.losses",
    "older_parts": "gguf.writer",
    "part_paths": "gguf.writer",
    "write_file": "io.atomic",
}

_log = logging.getLogger("starcoder")

_HEAD = 1 << 16  # bytes of a stranger that are looked at


def read(path: str | bytes | os.PathLike[str], pre: str | None = None) -> Checkpoint:
    """The model at `path`: a GGUF file, a legacy ggml `.bin` file or a Hugging Face directory.

    A file of such a directory, as its config.json, stands for the directory; of a GGUF model in
    several files, any will do. What the user should know of a model is in `notices`, and goes to
    the log of the name "starcoder". Files are mapped into memory, so the matrices take no memory
    until they are used. What reads them says so if a file changed meanwhile; replace model files
    by renaming.

    >>> read("starcoderbase-1b-q4_0.gguf").config.n_layers  # doctest: +SKIP
    24

    Args:
        path: the file or directory.
        pre: how text is split before merging, whatever the file says: "refact" or "starcoder",
            every digit apart; "gpt-2", GPT-2's pattern alone.

    Raises:
        FormatError: no model there, or one that is damaged or of an unknown kind.
        InputError: another name for `pre`, or what is no path.
        MemoryLimitError: no memory for norms, biases and position embeddings.
    """
    if pre is not None and arguments.text("pre", pre) not in PRE_TOKENIZERS:
        raise InputError("pre", repr(pre)[:80], " or ".join(PRE_TOKENIZERS))
    checkpoint = _read(Path(arguments.path("path", path, "a path")), pre)
    checkpoint.check_files()
    if pre is not None:
        vocab = replace(checkpoint.vocab, split_digits=PRE_TOKENIZERS[pre])
        checkpoint = replace(checkpoint, vocab=vocab)
    for notice in checkpoint.notices:
        _log.warning("%s", printable(f"{checkpoint.source}: {notice}"))
    return checkpoint


def _read(path: Path, pre: str | None) -> Checkpoint:
    if os.path.isdir(path):
        from starcoder.formats.hf import reader as hf

        return hf.read(path)
    from starcoder.formats.gguf import reader as gguf

    head = map_file(path)[:_HEAD]
    if head.startswith(gguf.MAGIC):
        return gguf.read(path, pre)
    from starcoder.formats.ggml import reader as ggml
    from starcoder.formats.hf import reader as hf

    if head.startswith(ggml.MAGIC):
        return ggml.read(path)
    folder = hf.folder_of(path)
    if folder is not None:
        return hf.read(folder)
    from starcoder.formats.strangers import stranger

    raise stranger(path, head)


def write(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    weights: Mapping[str, Weights] | None = None,
    *,
    legacy: bool = False,
    force: bool = False,
    file_type: int | None = None,
    origin: Mapping[str, str] | None = None,
    max_part_bytes: int | None = None,
    on_start: Callable[[int], None] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Write a model as GGUF version 3, or as a legacy ggml file; returns the bytes of the file.

    The file appears whole or not at all, and may be the one that `checkpoint` is read from.

    Args:
        path: the file to make or replace.
        checkpoint: the model.
        weights: what to write in place of the checkpoint's tensors, by the same names.
        legacy: write ggml's legacy format.
        force: write it although it cannot say all of this vocabulary.
        file_type: llama.cpp's number for this mix of types; by default that of most weights.
        origin: where the model came from, as more keys of a GGUF file.
        max_part_bytes: of weights in a file: write a GGUF model as parts, whose names `part_paths`
            gives. The first appears last, and without it the others are no model.
        on_start: is told how many bytes the file will have.
        on_bytes: is told how many more bytes were made, again and again.

    Raises:
        InputError: a legacy file in parts.
        WriteError: the file cannot be written, or the format cannot hold this model.
    """
    chosen: Mapping[str, Weights] = checkpoint.tensors if weights is None else weights
    if checkpoint.n_parts > 1 and max_part_bytes is None:
        _check_no_part(Path(path), checkpoint)
    if legacy:
        if max_part_bytes is not None:
            advice = "write a GGUF file, or one file"
            raise InputError("--split-max-size", "a legacy file in parts", "one file", advice)
        from starcoder.formats.ggml import writer as ggml_writer

        return ggml_writer.write(
            Path(path), checkpoint, chosen, force=force, on_start=on_start, on_bytes=on_bytes
        )
    from starcoder.formats.gguf import writer as gguf_writer

    return gguf_writer.write(
        Path(path),
        checkpoint,
        chosen,
        number=file_type,
        origin=origin or {},
        max_part_bytes=max_part_bytes,
        on_start=on_start,
        on_bytes=on_bytes,
    )


def _check_no_part(path: Path, checkpoint: Checkpoint) -> None:
    """Ends writing one file over a part of its own source, which would be lost with it."""
    from starcoder.formats.gguf.parts import part_path

    sources = (
        part_path(Path(checkpoint.source), i, checkpoint.n_parts) for i in range(checkpoint.n_parts)
    )
    if os.path.realpath(path) in map(os.path.realpath, sources):
        found, expected = "a part of the model that is read", "another name"
        raise WriteError(str(path), found, expected, "without it the other parts are of no use")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'starcoder.formats' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"starcoder.formats.{_HOMES[name]}"), name)
