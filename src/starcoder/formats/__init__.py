"""Files: any model on disk becomes one plain `Checkpoint`. Each format has a module of its own.

What a file is goes by its first bytes, never by its name. A new format is a module with `MAGIC`
and `read`, and a row in the table; a writer will be a `write` beside its `read`.
"""

from __future__ import annotations

import os
from pathlib import Path

from starcoder.checkpoint import Checkpoint
from starcoder.errors import FormatError
from starcoder.formats import ggml, gguf, hf
from starcoder.formats._bytes import map_file

__all__ = ["read"]

_READERS = {gguf.MAGIC: gguf.read, ggml.MAGIC: ggml.read}

_KNOWN = "a GGUF file, a ggml .bin file or a Hugging Face directory"
_STRANGERS = {  # first bytes of files that people try, and what to do with them
    b"PK\x03\x04": ("a PyTorch file", "pickles are not read: save the model as safetensors"),
    b"tjgg": ("a ggjt file", "this format holds LLaMA models only; use a GGUF file"),
    b"fmgg": ("a ggmf file", "this format holds LLaMA models only; use a GGUF file"),
    b"vers": ("a git-lfs pointer", "fetch the file itself with git lfs pull"),
}


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """The model at `path`: a GGUF file, a legacy ggml `.bin` file or a Hugging Face directory.

    Files are mapped into memory, so the weights take no memory until they are used and no file
    may change while its `Checkpoint` lives; replace model files by renaming.

    >>> read("starcoderbase-1b-q4_0.gguf").config.n_layers  # doctest: +SKIP
    24

    Raises:
        FormatError: no model there, or one that is damaged or of an unknown kind.
    """
    path = Path(path)
    if os.path.isdir(path):
        return hf.read(path)
    magic = map_file(path)[: len(gguf.MAGIC)]
    reader = _READERS.get(magic)
    if reader is None:
        found, advice = _STRANGERS.get(magic, (f"a file that starts with {magic!r}", ""))
        raise FormatError(str(path), found, _KNOWN, advice)
    return reader(path)
