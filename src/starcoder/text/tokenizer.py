"""Text to token ids and back, and streams of ids to whole characters.

Byte-level BPE as the StarCoder family was trained with: digits stand apart, GPT-2's pattern cuts
the rest into words, merges build the tokens. The `tokenizers` library does the words and merges;
special tokens, limits and the way back are ours. Knows nothing of files, prompts or models.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from itertools import accumulate, pairwise
from operator import index

import tokenizers
from tokenizers import models, pre_tokenizers

from starcoder.errors import FormatError, InputError
from starcoder.model.vocab import BYTE_TEXT, Vocab
from starcoder.text.long_text import Encoder

__all__ = ["StreamDecoder", "Tokenizer"]


class Tokenizer:
    """The tokenizer of one vocabulary; unchanging, so threads may share it.

    Takes 65 ms to make for the 49,152 tokens of StarCoder (Zen 4; by JSON: 140 ms).

    Args:
        vocab: the tokens, merges and special ids.

    Raises:
        FormatError: merges of what is no token, or special tokens of unlikely length.
    """

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        library = _build(vocab)
        self._encoder = Encoder(library, vocab.tokens)
        known = map(library.token_to_id, BYTE_TEXT)
        self._bytes = bytes(byte for byte, token in enumerate(known) if token is not None)
        self._special = _special_ids(vocab)
        self._unembedded = _unembedded(vocab)
        self._special_pattern = _any_of({*self._special, *self._unembedded})
        self.max_token_bytes = max(map(len, vocab.tokens), default=0)  # of text

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Return the ids of `text`.

        With `special`, special tokens written out, such as "<fim_prefix>", become their own ids;
        without, they are text like any other, as befits text from strangers.

        >>> tokenizer.encode("def f")  # doctest: +SKIP
        [589, 296]

        Raises:
            InputError: a lone surrogate (text that was never valid UTF-8), or a character with a
                byte that is no token: StarCoder's vocabulary lacks 0xF1, U+40000 to U+7FFFF; with
                `special`, a token that the tokenizer was given and the model has no row for.
        """
        known = special and (self._special or self._unembedded)
        tokens: list[int] = []
        start = 0
        for found in self._special_pattern.finditer(text) if known else ():
            tokens += self._encode_text(text[start : found.start()])
            tokens.append(self._special_id(found[0]))
            start = found.end()
        tokens += self._encode_text(text[start:])
        return tokens

    def _special_id(self, text: str) -> int:
        token = self._special.get(text)
        if token is None:
            found = f"the token {text[:80]!r}, which the embedding has no row for"
            advice = "leave it out, or train the model with it"
            raise InputError("text", found, "tokens that the model knows", advice)
        return token

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of `tokens`, special tokens as they are written, padding as nothing.

        Bytes that are not UTF-8 become U+FFFD; `decode_bytes` keeps them.

        Raises:
            InputError: an id outside the vocabulary.
        """
        return self.decode_bytes(tokens).decode("utf-8", errors="replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes of `tokens`, one after the other; errors as in `decode`."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one id, b"" for padding; errors as in `decode`."""
        token = index(token)
        if not 0 <= token < len(self.vocab.tokens):
            raise InputError("token id", str(token), f"0 to {len(self.vocab.tokens) - 1}")
        return self.vocab.tokens[token]

    def _encode_text(self, text: str) -> list[int]:
        self._check(text)
        return self._encoder.encode(text)

    def _check(self, text: str) -> None:
        """Refuse what the library would drop without a word."""
        try:
            unknown = text.encode().translate(None, self._bytes)
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X}, half of a character"
            raise InputError("text", found, "Unicode text", "read it as UTF-8") from None
        if unknown:
            char = next(char for char in text if unknown[0] in char.encode())
            found = f"U+{ord(char):04X}, whose byte 0x{unknown[0]:02X} is no token"
            expected = "characters that the vocabulary can spell"
            raise InputError("text", found, expected, "leave it out")


class StreamDecoder:
    """Decodes ids one at a time into whole characters.

    All that `add` returned and then `flush` make up exactly what `Tokenizer.decode` gives for all
    ids at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """Return the characters that `token` completes, often "" inside an emoji.

        Raises:
            InputError: an id outside the vocabulary; the stream goes on as if it were not there.
        """
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """Return what is held back, U+FFFD for a character cut short, and start anew."""
        return self._decoder.decode(b"", final=True)


# ------------------------------------------------------------------------------------------------
# Building


def _build(vocab: Vocab) -> tokenizers.Tokenizer:
    texts = _byte_level(vocab)
    # From the last to the first, so that of tokens spelled alike the first has the text.
    ids = dict(zip(reversed(texts), range(len(texts) - 1, -1, -1), strict=True))
    ids.pop("", None)
    lefts, rights = ([texts[i] for i in column] for column in vocab.merges.T.tolist())
    merges = [(a, b) for a, b in zip(lefts, rights, strict=True) if a and b and a + b in ids]
    if len(merges) < len(vocab.merges):
        _check_unusable(vocab)
    built = tokenizers.Tokenizer(models.BPE(ids, merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if vocab.split_digits else []
    built.pre_tokenizer = pre_tokenizers.Sequence([*digits, words])
    return built


def _check_unusable(vocab: Vocab) -> None:
    """Allow unusable merges that involve special tokens; refuse any other one.

    Left to the library, a merge that makes no token can panic.
    """
    known = {*vocab.tokens} - {b""}
    for rank, (left, right) in enumerate(vocab.merges.tolist()):
        a, b = vocab.tokens[left], vocab.tokens[right]
        if not {a, b, a + b} <= known:
            found = f"merge {rank} of {a[:40]!r} and {b[:40]!r}"
            raise FormatError("vocabulary", found, "two tokens that make a token")


def _byte_level(vocab: Vocab) -> list[str]:
    """Write tokens as the library wants them, as in vocabulary files; special tokens as ""."""
    tokens = list(vocab.tokens)
    for i in vocab.special_ids:
        tokens[i] = b""
    joined, _ = codecs.charmap_decode(b"".join(tokens), "strict", BYTE_TEXT)
    ends = accumulate(map(len, tokens), initial=0)
    return [joined[start:end] for start, end in pairwise(ends)]


# ------------------------------------------------------------------------------------------------
# Special tokens


def _special_ids(vocab: Vocab) -> dict[str, int]:
    """Map special tokens as they stand in text to ids, the first id of those spelled alike."""
    ids = {}
    for i in sorted(vocab.special_ids, reverse=True):
        with suppress(UnicodeDecodeError):  # other bytes stand in no text
            ids[vocab.tokens[i].decode()] = i
    ids.pop("", None)
    return ids


def _unembedded(vocab: Vocab) -> frozenset[str]:
    """Special tokens, as they stand in text, that the model cannot be given."""
    texts = set()
    for raw in vocab.unembedded:
        with suppress(UnicodeDecodeError):
            texts.add(raw.decode())
    return frozenset(texts - {""})


_MAX_SPECIAL = 1 << 16  # characters of all special tokens; StarCoder's 19 have 244


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Compile a pattern with one group that matches each of `texts`, of several the longest."""
    if sum(map(len, texts)) > _MAX_SPECIAL:
        found = f"{len(texts)} special tokens of more than {_MAX_SPECIAL} characters in all"
        raise FormatError("vocabulary", found, "a few short ones")
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})")
