"""Files that people give us and that are no model of ours, by their first bytes: what they are.

ggml's own examples wrote models of many kinds under one magic number; `ggml.strangers` tells these
apart.
"""

from __future__ import annotations

import struct
from pathlib import Path

from starcoder.errors import FormatError
from starcoder.formats.io.placeholders import placeholder

__all__ = ["stranger"]

_EXPECTED = "a GGUF file, a ggml .bin file or a Hugging Face directory"
_MERGE = "merge it into its model, with peft's merge_and_unload, and convert that"
_LLAMA = "this format holds LLaMA models only; use a GGUF file"
_UNPACK = "unpack it first"
_PYTORCH = "a PyTorch file", "give its directory, or save the model as safetensors"

_STRANGERS = {  # first bytes: what the file is, and what to do
    b"PK\x03\x04": _PYTORCH,
    b"\x80\x02": _PYTORCH,
    b"tjgg": ("a ggjt file", _LLAMA),
    b"fmgg": ("a ggmf file", _LLAMA),
    b"algg": ("a LoRA adapter in ggml's format", "merge it into its model first"),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"BZh": ("a bzip2 archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
}
_MAX_NAMES = 1 << 20  # of a safetensors header that is looked at


def stranger(path: Path, head: bytes) -> FormatError:
    """The error that says what the file is, as far as its beginning, some kB, tells."""
    found, advice = _name(path, head)
    return FormatError(str(path), found, _EXPECTED, advice)


def _name(path: Path, head: bytes) -> tuple[str, str]:
    if path.name.startswith("adapter_model.") or _has_lora(head):
        return "a LoRA adapter without its model", _MERGE
    standing_in = placeholder(head)
    if standing_in is not None:
        return standing_in
    for start, known in _STRANGERS.items():
        if head.startswith(start):
            return known
    if head.lstrip().startswith(b"{"):
        return "a JSON file", "give the directory that it belongs to"
    return f"a file that starts with {head[:4]!r}", ""


def _has_lora(head: bytes) -> bool:
    """Whether it is a safetensors file with the tensors that peft trains."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = struct.unpack_from("<Q", head)
    names = head[8 : 8 + min(length, _MAX_NAMES)]
    return b".lora_A" in names or b".lora_embedding_A" in names
