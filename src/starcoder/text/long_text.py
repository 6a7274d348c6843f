"""Encoding text of any length in little memory, with the ids that it has as a whole.

The library takes 160 bytes of memory a character, so long text goes piece by piece, cut where the
library itself begins a new word. A word that fills a piece (blanks, one letter a million times)
has no such place. It is cut anywhere, and the ids at the seam are mended.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

import tokenizers

from starcoder.model.vocab import BYTE_TEXT

__all__ = ["Encoder"]

_PIECE = 1 << 16  # characters, at least 4
# Most text has one of these in every line: a space or line feed that ends a word, a digit after a
# letter. A new word begins there in every byte-level vocabulary.
_SEAM = re.compile(r"(?<=\S)[ \n]|(?<=[A-Za-z])[0-9]")


class Encoder:
    """Turns text without special tokens into ids.

    Args:
        library: tells words apart and merges their bytes.
        tokens: the bytes of each id.
    """

    def __init__(self, library: tokenizers.Tokenizer, tokens: Sequence[bytes]) -> None:
        self._library, self._tokens = library, tokens

    def encode(self, text: str) -> list[int]:
        """The ids of a text that the vocabulary can spell."""
        ids: list[int] = []
        start = 0
        while len(text) - start > _PIECE:
            seam = _SEAM.search(text, start + _PIECE // 2, start + _PIECE)
            end = seam.start() if seam else start + self._last_word(text[start : start + _PIECE])
            if end > start:
                ids += self._words(text[start:end])
            else:
                word, end = self._long_word(text, start)
                ids += word
            start = end
        ids += self._words(text[start:])
        return ids

    # -----------------------------------------------------------------------------------------
    # Words

    def _words(self, text: str) -> list[int]:
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def _last_word(self, text: str) -> int:
        """Where the last word begins that may be cut off.

        What follows the text can change the last word, and one letter after an apostrophe ("'re").
        Words after blanks stay with them: how blanks are cut depends on what follows.
        """
        starts = (start for _, (start, _) in self._library.pre_tokenizer.pre_tokenize_str(text))
        last = len(text) - 2
        return max(int(at) for at in starts if at <= last and not text[at - 1 : at].isspace())

    def _first_word(self, text: str) -> int:
        """Where the first word ends."""
        return int(self._library.pre_tokenizer.pre_tokenize_str(text)[0][1][1])

    def _long_word(self, text: str, start: int) -> tuple[list[int], int]:
        """The ids of the word that begins at `start` and fills a piece, and where it ends.

        From the middle of a piece that one word fills, the rest of the word is a word again.
        """
        ids: list[int] = []
        while True:
            piece = text[start : start + _PIECE]
            end = self._first_word(piece)
            if end < len(piece) or start + end == len(text):
                self._join(ids, self._merge(piece[:end].encode()))
                return ids, start + end
            end = _PIECE // 2
            self._join(ids, self._merge(piece[:end].encode()))
            start += end

    # -----------------------------------------------------------------------------------------
    # Inside a word

    def _merge(self, raw: bytes) -> list[int]:
        """The ids of bytes that are one word."""
        spelled, _ = codecs.charmap_decode(raw, "strict", BYTE_TEXT)
        return [token.id for token in self._library.model.tokenize(spelled)]

    def _join(self, left: list[int], right: list[int]) -> None:
        """Append `right` to `left`, two parts of one word, mending the ids at the seam.

        Merging goes by rank and then from the left, so a first merge across the border of two
        tokens would come in a word of these two alone as well. Ids are those of a whole word if
        every two neighbors are the ids of their own bytes: only new neighbors need a look.
        """
        n = 0  # tokens on either side that are merged anew
        while True:
            first = max(0, len(left) - n)
            middle = self._merge(self._bytes(left[first:] + right[:n]))
            whole = [*left[:first][-1:], *middle, *right[n:][:1]]
            if self._fit(whole[:2]) and self._fit(whole[-2:]):
                left[first:] = middle + right[n:]
                return
            n = max(1, 2 * n)

    def _fit(self, pair: list[int]) -> bool:
        return self._merge(self._bytes(pair)) == pair

    def _bytes(self, ids: list[int]) -> bytes:
        return b"".join(self._tokens[i] for i in ids)
