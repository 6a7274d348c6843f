"""Files: any model on disk becomes one plain `Checkpoint`. Each format has a module of its own.

What a file is goes by its first bytes, never by its name. A new format is a module with `MAGIC`
and `read`, and a row in the table. Writers stand beside their readers, in modules of their own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from starcoder.checkpoint import Checkpoint
from starcoder.errors import FormatError
from starcoder.formats import _ggml_writer, _gguf_writer, ggml, gguf, hf
from starcoder.formats._bytes import map_file
from starcoder.formats._ggml_losses import legacy_losses
from starcoder.formats._gguf_carry import carried_keys
from starcoder.tensor import Weights

__all__ = ["legacy_losses", "read", "write"]

_log = logging.getLogger("starcoder")

_READERS = {gguf.MAGIC: gguf.read, ggml.MAGIC: ggml.read}

_KNOWN = "a GGUF file, a ggml .bin file or a Hugging Face directory"
_STRANGERS = {  # first bytes of files that people try, and what to do with them
    b"PK\x03\x04": ("a PyTorch file", "give its directory, or save the model as safetensors"),
    b"tjgg": ("a ggjt file", "this format holds LLaMA models only; use a GGUF file"),
    b"fmgg": ("a ggmf file", "this format holds LLaMA models only; use a GGUF file"),
    b"vers": ("a git-lfs pointer", "fetch the file itself with git lfs pull"),
}


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """The model at `path`: a GGUF file, a legacy ggml `.bin` file or a Hugging Face directory.

    A file of such a directory, as its config.json, stands for the directory.

    What the user should know of it is in `notices`, and goes to the log of the name "starcoder".
    Files are mapped into memory, so the weights take no memory until they are used. What reads
    them says so if a file changed meanwhile; replace model files by renaming.

    >>> read("starcoderbase-1b-q4_0.gguf").config.n_layers  # doctest: +SKIP
    24

    Raises:
        FormatError: no model there, or one that is damaged or of an unknown kind.
    """
    checkpoint = _read(Path(path))
    checkpoint.check_files()
    for notice in checkpoint.notices:
        _log.warning("%s: %s", checkpoint.source, notice)
    return checkpoint


def _read(path: Path) -> Checkpoint:
    if os.path.isdir(path):
        return hf.read(path)
    magic = map_file(path)[: len(gguf.MAGIC)]
    reader = _READERS.get(magic)
    if reader is None:
        folder = hf.folder_of(path)
        if folder is not None:
            return hf.read(folder)
        found, advice = _STRANGERS.get(magic, (f"a file that starts with {magic!r}", ""))
        raise FormatError(str(path), found, _KNOWN, advice)
    return reader(path)


def write(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    weights: Mapping[str, Weights] | None = None,
    *,
    legacy: bool = False,
    force: bool = False,
    file_type: int | None = None,
    origin: Mapping[str, str] | None = None,
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
        on_start: is told how many bytes the file will have.
        on_bytes: is told how many more bytes were made, again and again.

    Raises:
        WriteError: the file cannot be written, or the format cannot hold this model.
    """
    chosen: Mapping[str, Weights] = checkpoint.tensors if weights is None else weights
    if legacy:
        return _ggml_writer.write(
            Path(path), checkpoint, chosen, force=force, on_start=on_start, on_bytes=on_bytes
        )
    is_gguf = checkpoint.format.startswith("GGUF")
    return _gguf_writer.write(
        Path(path),
        checkpoint,
        chosen,
        number=file_type,
        carried=carried_keys(Path(checkpoint.source)) if is_gguf else {},
        origin=origin or {},
        on_start=on_start,
        on_bytes=on_bytes,
    )
