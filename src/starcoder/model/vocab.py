"""Vocab: what each token id spells, how spellings merge, and which ids mean something special.

Plain values, the same from every file format. `tokenizer` turns text into ids with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import FormatError

__all__ = ["BYTE_TEXT", "Vocab"]


def _byte_text() -> str:
    others = map(chr, range(256, 512))
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return "".join(chr(byte) if byte in printable else next(others) for byte in range(256))


# How vocabulary files write each byte, as one printable character (GPT-2's "byte to unicode"):
# printable Latin-1 as it is, U+0100 and on for the rest. A space is "Ġ", a line feed "Ċ".
BYTE_TEXT = _byte_text()


# Of a document, and of a turn in a chat: StarChat's, OpenChat's, ChatML's.
_END_NAMES = ("<|endoftext|>", "<|end|>", "<|end_of_turn|>", "<|im_end|>")


@dataclass(frozen=True, slots=True, eq=False)
class Vocab:
    """The vocabulary of a byte-level BPE tokenizer.

    Raises:
        FormatError: an id that no token has.
    """

    tokens: tuple[bytes, ...]  # (n_vocab,) the bytes of each id; b"" where an id is only padding
    merges: NDArray[np.int32]  # (n_merges, 2) ids left, right; by rank, most frequent first
    special_ids: frozenset[int]  # control and added tokens: matched whole, never by merging
    eos_id: int | None  # the token that ends a document
    bos_id: int | None = None
    split_digits: bool = True  # every digit apart, as StarCoder; False: GPT-2's pattern alone
    other_end_ids: frozenset[int] = frozenset()  # more ids at which generation stops
    # Special tokens that the tokenizer's files name and the embedding has no row for ("[PAD]").
    unembedded: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        named = {"eos_id": self.eos_id, "bos_id": self.bos_id}
        ids = {name: value for name, value in named.items() if value is not None}
        ids |= {f"special id {value}": value for value in self.special_ids}
        ids |= {f"end id {value}": value for value in self.other_end_ids}
        for name, value in ids.items():
            if not 0 <= value < len(self.tokens):
                raise FormatError(f"vocabulary: {name}", str(value), f"0 to {len(self.tokens) - 1}")
        if np.any((self.merges < 0) | (self.merges >= len(self.tokens))):
            raise FormatError("vocabulary: merges", "an id out of range", "ids of tokens")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocab):
            return NotImplemented
        names = ("tokens", "special_ids", "eos_id", "bos_id", "end_ids", "split_digits")
        same = all(getattr(self, name) == getattr(other, name) for name in names)
        return same and np.array_equal(self.merges, other.merges)

    def find(self, text: str) -> int | None:
        """The id of the special token that is written `text`, or None."""
        wanted = text.encode()
        return next((i for i in sorted(self.special_ids) if self.tokens[i] == wanted), None)

    @property
    def end_ids(self) -> frozenset[int]:
        """The ids at which generation stops: end of document, end of a chat turn, what else."""
        found = (self.eos_id, *map(self.find, _END_NAMES))
        return self.other_end_ids.union(i for i in found if i is not None)
