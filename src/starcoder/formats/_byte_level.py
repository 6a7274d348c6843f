"""What the readers share about vocabularies: byte-level text, merges, names of special tokens.

Tokenizer files write every byte as one printable character ("byte to unicode", from GPT-2): a
space is "Ġ", a line feed "Ċ". Readers turn that into the bytes themselves; nobody else sees it.
"""

from __future__ import annotations

import gc
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise, repeat
from typing import TypeVar

import numpy as np

from starcoder.errors import FormatError

__all__ = ["MAX_TOKENS", "MAX_TOKEN_LEN", "SPECIAL_NAMES", "merge_ids", "token_bytes"]

MAX_TOKENS = 1 << 17  # the family has 49,152 to 49,280
MAX_TOKEN_LEN = 4096  # bytes; StarCoder's longest is 512 spaces

# Special tokens of the family by name, for files that mark none: SantaCoder, StarCoder, StarChat.
SPECIAL_NAMES = frozenset(
    b"""<|endoftext|> <fim-prefix> <fim-middle> <fim-suffix> <fim-pad> <fim_prefix> <fim_middle>
    <fim_suffix> <fim_pad> <filename> <gh_stars> <issue_start> <issue_comment> <issue_closed>
    <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <empty_output> <commit_before>
    <commit_msg> <commit_after> <reponame> <|system|> <|user|> <|assistant|> <|end|>
    <|end_of_turn|>""".split()
)

_FOREIGN = 256  # what characters outside the alphabet map to


def _alphabet() -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """(325,) the byte that each character stands for; GPT-2's `bytes_to_unicode` turned round."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = np.full(256 + len(rest) + 1, _FOREIGN, np.uint16)
    table[printable] = printable
    table[256:-1] = rest
    return table


_BYTE_OF = _alphabet()
_NEWLINE = ord("\n")  # no character of the alphabet, so it can stand between tokens


def token_bytes(joined: str, n: int, where: str) -> list[bytes]:
    """The bytes of `n` tokens whose byte-level texts are joined by line feeds.

    All at once, because one by one takes 25 ms for StarCoder's vocabulary and this takes 8.

    Raises:
        FormatError: a character that stands for no byte; the message has the id.
    """
    try:
        codes = np.frombuffer(joined.encode("utf-16-le"), np.uint16)
    except UnicodeEncodeError:
        raise FormatError(where, "half a character", "byte-level text") from None
    mapped = _BYTE_OF[np.minimum(codes, len(_BYTE_OF) - 1)]
    seams = np.flatnonzero(codes == _NEWLINE)
    foreign = np.flatnonzero(mapped == _FOREIGN)
    if len(seams) != n - 1 or not np.array_equal(seams, foreign):
        found = next((i for i in foreign.tolist() if codes[i] != _NEWLINE), None)
        token_id = "a line feed" if found is None else f"token {np.searchsorted(seams, found)}"
        expected = "byte-level text, as GPT-2 writes it"
        raise FormatError(where, f"{token_id} with a character that stands for no byte", expected)
    raw = mapped.astype(np.uint8).tobytes()
    return [raw[a + 1 : b] for a, b in pairwise([-1, *seams.tolist(), len(raw)])]


_Text = TypeVar("_Text", str, bytes)


def merge_ids(
    lefts: Sequence[_Text], rights: Sequence[_Text], ids: Mapping[_Text, int], where: str
) -> tuple[tuple[int, int], ...]:
    """The merges as pairs of ids. Both parts and what they merge to must be tokens.

    Raises:
        FormatError: a part or a result that is no token.
    """
    left_ids, right_ids = (list(map(ids.get, part, repeat(-1))) for part in (lefts, rights))
    results = map(ids.get, map(operator.add, lefts, rights), repeat(-1))
    for column in (left_ids, right_ids, list(results)):
        if -1 in column:
            at = column.index(-1)
            found = f"merge {at} of {lefts[at]!r} and {rights[at]!r}"[:120]
            raise FormatError(where, found, "parts and a result that are tokens")
    with _collector_paused():
        return tuple(zip(left_ids, right_ids, strict=True))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without passes for garbage: 48,891 new pairs set off 70 of them, 14 ms of 95 in all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
