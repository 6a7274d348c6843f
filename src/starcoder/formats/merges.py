"""The merges of a vocabulary, for files that store its tokens alone: legacy ones, and some GGUF.

What merges are for is told in `vocab`; here they are found again from what they made.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import FormatError

__all__ = ["recover_merges"]


def recover_merges(tokens: Sequence[bytes], special_ids: Collection[int]) -> NDArray[np.int32]:
    """The merges that made `tokens`, for files that store the tokens alone.

    A byte-level BPE vocabulary grows by one token a merge, so ids are in order of rank, and a token
    is the pair of earlier tokens that encoding its bytes stops at: exact for StarCoder (48,891
    merges) and StarCoder2 (48,872), 0.17 s. Padding, special tokens and spellings that came before
    are skipped; so is a token that no merge can make.

    Returns:
        (n_merges, 2) pairs of ids left, right, in order of the id they merge to.

    Raises:
        FormatError: a token longer than 4096 bytes, or spellings far more ambiguous than language.
    """
    _check_lengths(tokens)
    skipped = frozenset(special_ids)
    steps = iter(range(_MIN_STEPS + _STEPS_PER_BYTE * sum(map(len, tokens))))
    ids: dict[bytes, int] = {}
    parts: dict[int, tuple[int, int]] = {}  # of each token; a byte is both parts of itself
    made: dict[tuple[int, int], int] = {}  # grows in order of rank: insertion order is the answer
    for token_id, token in enumerate(tokens):
        if not token or token in ids or token_id in skipped:
            continue
        if len(token) == 1:
            parts[token_id] = token_id, token_id
        else:
            pair = _last_merge(token, ids, parts, made, steps)
            if pair is None:
                continue
            parts[token_id] = pair
            made[pair] = token_id
        ids[token] = token_id
    return np.array(list(made), np.int32).reshape(-1, 2)


_MAX_TOKEN_LEN = 4096  # bytes; StarCoder's longest is 256
_MAX_SPLIT_WORK = 1 << 30  # bytes sliced, about a second; StarCoder's vocabulary takes 3 million
_MIN_STEPS = 1 << 20  # walks down merge trees; StarCoder's vocabulary takes 240,000 for 300 kB
_STEPS_PER_BYTE = 8


def _check_lengths(tokens: Sequence[bytes]) -> None:
    longest = max(map(len, tokens), default=0)
    if longest > _MAX_TOKEN_LEN:
        found = f"a token of {longest} bytes"
        raise FormatError("vocabulary", found, f"at most {_MAX_TOKEN_LEN}", _DAMAGED)
    if sum(len(token) ** 2 for token in tokens) > _MAX_SPLIT_WORK:
        raise FormatError("vocabulary", "very many long tokens", "mostly short ones", _DAMAGED)


_DAMAGED = "the file is damaged, or its vocabulary is not byte-level BPE"


def _last_merge(
    token: bytes,
    ids: dict[bytes, int],
    parts: dict[int, tuple[int, int]],
    made: dict[tuple[int, int], int],
    steps: Iterator[int],
) -> tuple[int, int] | None:
    """The two ids that encoding `token` stops at, or None where it stops at more."""
    for at in range(1, len(token)):
        left = ids.get(token[:at])
        if left is not None:
            right = ids.get(token[at:])
            if right is not None and _meet(left, right, parts, made, steps):
                return left, right
    return None


def _meet(
    left: int,
    right: int,
    parts: dict[int, tuple[int, int]],
    made: dict[tuple[int, int], int],
    steps: Iterator[int],
) -> bool:
    """Whether encoding the bytes of both stops at exactly `left`, `right`.

    It does unless some merge joins the two sides of the seam before both are whole. So undo the
    merges next to the seam, youngest first, and look for one that is older than all undone so far.
    (Aneubeck and van Antwerpen's test, from the `bpe` crate.) Each turn takes one of `steps`.
    """
    oldest = sys.maxsize  # of the merges undone
    for _ in steps:
        joined = made.get((left, right))
        if joined is not None and joined < oldest:
            return False
        if left > right:
            oldest, left = left, parts[left][1]
            if left == oldest:  # a byte: only the other side is left to undo
                oldest, right = right + 1, parts[right][0]
                if right + 1 == oldest:
                    return True
        else:
            oldest, right = right + 1, parts[right][0]
            if right + 1 == oldest:
                oldest, left = left, parts[left][1]
                if left == oldest:
                    return True
    raise FormatError("vocabulary", "endless ways to build its tokens", "few", _DAMAGED)
