"""Legacy ggml files of other models: GPT-2, GPT-J, GPT-NeoX, Replit, MPT, LLaMA, BLOOM.

ggml's examples shared a magic number and no header. A layout is right if its vocabulary leads to a
tensor that such a model has, so the answer is no guess.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, NoReturn

from starcoder.formats.byte_level import MAX_TOKENS
from starcoder.formats.io.mapped import Cursor
from starcoder.model.models import ARCHITECTURES

__all__ = ["refuse_gpt2", "refuse_stranger"]

_I32 = struct.Struct("<i")
_START = 4  # behind the magic number
_MAX_WORD, _MAX_NAME = 1 << 10, 128
_ADVICE = "run it with the program that wrote it, or use a model of this family"
_GPT2_VOCAB = 50257
_NEOX = "GPT-NeoX (Dolly, Pythia, StableLM)"


class _Layout(NamedTuple):
    """How an example of ggml's wrote its files."""

    model: str
    n_numbers: int  # in the header, each of 32 bits
    n_vocab_at: int  # which of them
    is_counted: bool  # the vocabulary begins with its length again
    score_bytes: int  # after each token
    name: bytes  # how the first tensor's name begins


_LAYOUTS = (
    _Layout("GPT-J", 7, 0, True, 0, b"transformer."),
    _Layout(_NEOX, 8, 0, False, 0, b"gpt_neox."),
    _Layout(_NEOX, 7, 0, False, 0, b"gpt_neox."),  # before its parallel residual was optional
    _Layout("Replit", 6, 4, False, 4, b"transformer."),
    _Layout("MPT", 8, 4, False, 0, b"transformer."),
    _Layout("MPT", 6, 4, False, 0, b"transformer."),
    _Layout("LLaMA or BLOOM", 7, 0, False, 0, b"tok_embeddings."),
    _Layout("LLaMA or BLOOM", 6, 0, False, 0, b"tok_embeddings."),
)


def refuse_stranger(cursor: Cursor) -> None:
    """Return if no layout of another model fits.

    Raises:
        FormatError: a model of another kind, by its name.
    """
    for layout in _LAYOUTS:
        name = _first_tensor(cursor, layout)
        if name is not None and name.startswith(layout.name):
            _refuse(cursor, layout.model)


def refuse_gpt2(cursor: Cursor, tokens: list[bytes]) -> None:
    """Return unless the vocabulary is GPT-2's, whose files have the same layout as StarCoder's.

    Raises:
        FormatError: a GPT-2 model.
    """
    if len(tokens) == _GPT2_VOCAB and tokens[-1] == b"<|endoftext|>" != tokens[0]:
        _refuse(cursor, "GPT-2 (or Cerebras-GPT)")


def _refuse(cursor: Cursor, model: str) -> NoReturn:
    ours = (one for one in ARCHITECTURES.values() if one.has_legacy)
    expected = " or ".join(f"a {one.title} model: {one.models}" for one in ours)
    cursor.fail("", f"a ggml file of the kind {model}", expected, _ADVICE)


def _first_tensor(cursor: Cursor, layout: _Layout) -> bytes | None:
    """The name of the first tensor if the file has this layout; mostly None."""
    data, size = cursor.data, len(cursor.data)
    place = _START + 4 * layout.n_numbers
    if place + 4 > size:
        return None
    (n_vocab,) = _I32.unpack_from(data, _START + 4 * layout.n_vocab_at)
    if not 1 <= n_vocab <= MAX_TOKENS:
        return None
    if layout.is_counted:
        if _I32.unpack_from(data, place)[0] != n_vocab:
            return None
        place += 4
    for _ in range(n_vocab):
        if place + 4 > size:
            return None
        (length,) = _I32.unpack_from(data, place)
        if not 0 <= length <= _MAX_WORD:
            return None
        place += 4 + length + layout.score_bytes
    if place + 12 > size:
        return None
    n_dims, length, _ = struct.unpack_from("<3i", data, place)
    place += 12 + 4 * n_dims
    if not (1 <= n_dims <= 4 and 1 <= length <= _MAX_NAME and place + length <= size):
        return None
    return bytes(data[place : place + length])
