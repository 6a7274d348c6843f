"""Keys of a GGUF file that writing it again shall not lose: author, license, chat template.

They are carried as bytes, type and value; `carried_text` looks into one for those who show it.
"""

from __future__ import annotations

import struct

from starcoder.formats.gguf.header import INTEGERS, Meta
from starcoder.formats.gguf.parts import SPLIT_ID
from starcoder.formats.gguf.vocab import ENDS, UNEMBEDDED
from starcoder.model.checkpoint import Checkpoint

__all__ = ["carried_keys", "carried_text", "encoded"]

_MAX_BYTES = 1 << 20  # of one key
_STRING = 8  # GGUF's number for a type
_HEAD = struct.Struct("<IQ")  # of a text: its type and its length in bytes
# What the writer says itself, of this model: what it leaves out does not hold for it.
_OURS = (
    "general.alignment",
    "general.quantization_version",
    "split.",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.scores",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    ENDS,
    SPLIT_ID,
    UNEMBEDDED,
)


def carried_keys(meta: Meta, n_vocab: int) -> dict[str, bytes]:
    """The keys of a file whose model has `n_vocab` ids, each with its encoded type and value."""
    return {
        key: meta.cursor.data[span]
        for key, span in meta.spans.items()
        if span.stop - span.start <= _MAX_BYTES
        and not key.startswith(_OURS)
        and _is_known_id(meta, key, n_vocab)
    }


def carried_text(checkpoint: Checkpoint, key: str) -> str | None:
    """What a model carries under a key, if that is text: `general.license`, for example."""
    raw = checkpoint.carried.get(key, b"")
    is_text = len(raw) >= _HEAD.size and _HEAD.unpack_from(raw)[0] == _STRING
    return raw[_HEAD.size :].decode("utf-8", "replace") if is_text else None


def encoded(text: str) -> bytes:
    """A text as a value of a GGUF file, behind its type."""
    raw = text.encode("utf-8", "replace")
    return _HEAD.pack(_STRING, len(raw)) + raw


def _is_known_id(meta: Meta, key: str, n_vocab: int) -> bool:
    """False for the id of a special token that no token has."""
    if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
        return True
    number, value = meta.values[key]
    return number in INTEGERS and 0 <= value < n_vocab
