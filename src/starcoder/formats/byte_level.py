"""What the readers share about vocabularies: byte-level text, merges, names of special tokens.

Tokenizer files write every byte as one printable character (`vocab.BYTE_TEXT`). Readers turn that
into the bytes themselves.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, pairwise, repeat
from typing import AnyStr

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import FormatError
from starcoder.model.vocab import BYTE_TEXT

__all__ = [
    "MAX_TOKENS",
    "MAX_TOKEN_LEN",
    "MAX_VOCAB_BYTES",
    "PRE_TOKENIZERS",
    "SPECIAL_NAMES",
    "joins_digits",
    "merge_ids",
    "token_bytes",
]

MAX_TOKENS = 1 << 17  # the family has 49,152 to 49,280
MAX_TOKEN_LEN = 4096  # bytes; StarCoder's longest is 512 spaces
MAX_VOCAB_BYTES = 4 << 20  # of all tokens, or of all merges; StarCoder's have 0.4 MB

# llama.cpp's names for how text is split before merging: whether digits come apart first.
PRE_TOKENIZERS = {"refact": True, "starcoder": True, "gpt-2": False}

# Special tokens of the family by name, for files that mark none: SantaCoder, StarCoder, StarChat,
# and chat models that write ChatML.
SPECIAL_NAMES = frozenset(
    b"""<|endoftext|> <fim-prefix> <fim-middle> <fim-suffix> <fim-pad> <fim_prefix> <fim_middle>
    <fim_suffix> <fim_pad> <filename> <gh_stars> <issue_start> <issue_comment> <issue_closed>
    <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <empty_output> <commit_before>
    <commit_msg> <commit_after> <reponame> <|system|> <|user|> <|assistant|> <|end|>
    <|end_of_turn|> <|im_start|> <|im_end|>""".split()
)

_FOREIGN = 256  # what characters outside the alphabet map to
_BYTE_OF = np.full(ord(max(BYTE_TEXT)) + 2, _FOREIGN, np.uint16)  # by character; the last: beyond
_BYTE_OF[[ord(char) for char in BYTE_TEXT]] = range(256)


def token_bytes(texts: Sequence[str], where: str) -> list[bytes]:
    """The bytes that byte-level texts stand for, one for each of their characters.

    All at once, because one by one takes 25 ms for StarCoder's vocabulary and this takes 8.

    Raises:
        FormatError: a character that stands for no byte; the message has the id.
    """
    try:
        codes = np.frombuffer("".join(texts).encode("utf-16-le"), np.uint16)
    except UnicodeEncodeError:
        raise FormatError(where, "half a character", "byte-level text") from None
    mapped = _BYTE_OF[np.minimum(codes, len(_BYTE_OF) - 1)]
    ends = list(accumulate(map(len, texts), initial=0))
    foreign = np.flatnonzero(mapped == _FOREIGN)
    if len(foreign):
        token_id = int(np.searchsorted(ends, foreign[0], side="right")) - 1
        found = f"token {token_id} with a character that stands for no byte"
        raise FormatError(where, found, "byte-level text, as GPT-2 writes it")
    raw = mapped.astype(np.uint8).tobytes()
    return [raw[start:end] for start, end in pairwise(ends)]


def merge_ids(
    lefts: Sequence[AnyStr], rights: Sequence[AnyStr], ids: Mapping[AnyStr, int], where: str
) -> NDArray[np.int32]:
    """The merges as ids (n, 2). Both parts and what they merge to must be tokens.

    Raises:
        FormatError: a part or a result that is no token.
    """
    columns = lefts, rights, map(operator.add, lefts, rights)
    found = [np.fromiter(map(ids.get, column, repeat(-1)), np.int32) for column in columns]
    unknown = np.flatnonzero(np.minimum.reduce(found) < 0)
    if len(unknown):
        at = int(unknown[0])
        merge = f"merge {at} of {lefts[at]!r} and {rights[at]!r}"[:120]
        raise FormatError(where, merge, "parts and a result that are tokens")
    return np.stack(found[:2], axis=1)


def joins_digits(tokens: Sequence[bytes], special_ids: Collection[int]) -> bool:
    """Whether merging made a token of two digits, as it can where digits do not come apart.

    This tells how text is split for files that do not say it.
    """
    skipped = frozenset(special_ids)
    words = b"\0".join(token for i, token in enumerate(tokens) if i not in skipped)
    return re.search(rb"[0-9]{2}", words) is not None
