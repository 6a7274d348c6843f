"""Keys of a GGUF file that writing it again shall not lose: author, license, chat template.

They are carried as bytes, type and value; `formats.carried` makes text of them, and them of text.
"""

from __future__ import annotations

from starcoder.formats.gguf.header import INTEGERS, Meta
from starcoder.formats.gguf.parts import SPLIT_ID
from starcoder.formats.gguf.vocab import ENDS, UNEMBEDDED

__all__ = ["carried_keys"]

_MAX_BYTES = 1 << 20  # of one key
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


def _is_known_id(meta: Meta, key: str, n_vocab: int) -> bool:
    """False for the id of a special token that no token has."""
    if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
        return True
    number, value = meta.values[key]
    return number in INTEGERS and 0 <= value < n_vocab
