"""The vocabulary of a GGUF file: what its keys `tokenizer.ggml.*` say of tokens and merges.

Files differ in how tokens are spelled. Nearly all have byte-level text ("Ġdef"); llama.cpp's
converter of September 2023 wrote the bytes themselves (" def"). The ids of special tokens are told
apart from nonsense by `special`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import repeat
from typing import AnyStr

import numpy as np
from numpy.typing import NDArray

from starcoder.errors import FormatError
from starcoder.formats.byte_level import (
    MAX_TOKEN_LEN,
    PRE_TOKENIZERS,
    SPECIAL_NAMES,
    joins_digits,
    merge_ids,
    token_bytes,
)
from starcoder.formats.gguf.header import Meta, Strings
from starcoder.formats.io.reject import shown
from starcoder.formats.merges import recover_merges
from starcoder.formats.special import known_id
from starcoder.model.vocab import Vocab

__all__ = ["ENDS", "UNEMBEDDED", "read_vocab"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_MARKED = (_UNKNOWN, _CONTROL, _USER_DEFINED)  # written as plain text, not byte-level
_BYTE_LEVEL, _RAW = ("Ġ", "Ċ"), (" ", "\n")  # how space and line feed are spelled

_TOKENS, _MERGES, _PRE = (f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "pre"))
_KINDS = "tokenizer.ggml.token_type"
ENDS = "starcoder_py.end_token_ids"  # ours: llama.cpp has names for three
UNEMBEDDED = "starcoder_py.unembedded_tokens"  # ours: tokens left out, which text may still spell
# fmt: off
_IDS = (  # llama.cpp's names of special tokens, its spelling
    "bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "cls", "mask",
    "prefix", "suffix", "middle",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)
# fmt: on


def read_vocab(meta: Meta, n_rows: int, pre: str | None) -> tuple[Vocab, list[str]]:
    """The vocabulary, and what its user should know.

    Args:
        meta: the keys.
        n_rows: of the embedding. Special tokens that have none are left out.
        pre: how text is split before merging, whatever the file says.

    Raises:
        FormatError: keys that are missing or wrong.
    """
    model = meta.text("tokenizer.ggml.model")
    if model != "gpt2":
        advice = "use a model with StarCoder's vocabulary"
        meta.cursor.fail("tokenizer.ggml.model", repr(model), "'gpt2', byte-level BPE", advice)
    notices: list[str] = []
    texts = _texts(meta)
    kinds = _kinds(meta, texts)
    tokens, special_ids, padding = _tokens(meta, texts, kinds)
    unembedded = _unembedded(meta, tokens, special_ids, padding, n_rows, notices)
    tokens, special_ids = tokens[:n_rows], frozenset(i for i in special_ids if i < n_rows)
    vocab = Vocab(
        tokens=tuple(tokens),
        merges=_merges(meta, texts[:n_rows], tokens, special_ids),
        special_ids=special_ids,
        eos_id=None,
        split_digits=_splits_digits(meta, pre, tokens, special_ids, notices),
        unembedded=unembedded,
    )
    return _with_ids(meta, vocab, len(texts), notices), notices


# ------------------------------------------------------------------------------------------------
# Tokens


def _texts(meta: Meta) -> Strings:
    """What the file has for each token: byte-level text, or where they are raw, bytes."""
    texts = meta.strings(_TOKENS)
    if not texts or max(map(len, texts)) > MAX_TOKEN_LEN:
        found, expected = "no token, or one too long", f"tokens of 1 to {MAX_TOKEN_LEN} bytes"
        meta.cursor.fail(_TOKENS, found, expected)
    if _is_raw(texts):
        return list(map(_plain, texts))
    if isinstance(texts[0], str):
        return texts
    return [_decoded(meta, i, text) for i, text in enumerate(texts)]


def _is_raw(texts: Strings) -> bool:
    """Whether tokens are bytes themselves, told by what stands for a space and a line feed."""
    known = set(texts)

    def count(spellings: tuple[str, str]) -> int:
        return sum(text in known or text.encode() in known for text in spellings)

    return count(_RAW) > count(_BYTE_LEVEL)


def _plain(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def _decoded(meta: Meta, token_id: int, text: str | bytes) -> str:
    try:
        return text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError:
        found = f"token {token_id} of the bytes {text[:16]!r}"
        meta.cursor.fail(_TOKENS, found, "UTF-8 text, or bytes for a space and a line feed too")


def _kinds(meta: Meta, texts: Strings) -> NDArray[np.int32]:
    """The type of every token. Old files mark no special tokens; these go by their names."""
    kinds = np.full(len(texts), _NORMAL, np.int32)
    if _KINDS in meta.values:
        kinds = meta.int32s(_KINDS, len(texts)).copy()
        if kinds.min() < _NORMAL or kinds.max() > _UNUSED:
            meta.cursor.fail(_KINDS, f"{kinds.min()} to {kinds.max()}", f"{_NORMAL} to {_UNUSED}")
    if not np.isin(kinds, _MARKED).any():
        kinds[[i for i, text in enumerate(texts) if _plain(text) in SPECIAL_NAMES]] = _CONTROL
    return kinds


def _tokens(
    meta: Meta, texts: Strings, kinds: NDArray[np.int32]
) -> tuple[list[bytes], frozenset[int], set[int]]:
    """The bytes of every token, which are special, and which are padding: "[PAD49153]" is b""."""
    padding = {i for i, text in enumerate(texts) if text[:4] in ("[PAD", b"[PAD")}
    padding = {i for i in padding if _plain(texts[i]) == b"[PAD%d]" % i}
    padding.update(np.flatnonzero(kinds == _UNUSED).tolist())
    marked = set(np.flatnonzero(np.isin(kinds, _MARKED)).tolist()) - padding
    skipped = padding | marked
    if isinstance(texts[0], bytes):
        tokens = [b"" if i in padding else _plain(text) for i, text in enumerate(texts)]
    else:
        words = ["" if i in skipped else str(text) for i, text in enumerate(texts)]
        tokens = token_bytes(words, f"{meta.cursor.name}: {_TOKENS}")
        for i in marked:
            tokens[i] = _plain(texts[i])
    return tokens, frozenset(i for i in marked if tokens[i]), padding


def _unembedded(
    meta: Meta,
    tokens: Sequence[bytes],
    special_ids: frozenset[int],
    padding: set[int],
    n_rows: int,
    notices: list[str],
) -> frozenset[bytes]:
    """The special tokens that the embedding has no row for; no other token may be so."""
    beyond = range(n_rows, len(tokens))
    for i in beyond:
        if i not in special_ids and i not in padding:
            found = f"{len(tokens)} tokens, and number {i}, {tokens[i][:40]!r}, is no special one"
            meta.cursor.fail(_TOKENS, found, f"{n_rows}, as the embedding has rows")
    dropped = [tokens[i] for i in beyond if i in special_ids]
    known = meta.strings(UNEMBEDDED) if UNEMBEDDED in meta.values else []
    if dropped:
        names = " ".join(shown(raw.decode("utf-8", "replace"), 40) for raw in dropped[:8])
        notices.append(f"tokens that the embedding has no row for are left out: {names}")
    return frozenset([*dropped, *map(_plain, known)]) - {b""}


# ------------------------------------------------------------------------------------------------
# Merges, and how text is split before them


def _merges(
    meta: Meta, texts: Strings, tokens: Sequence[bytes], special_ids: frozenset[int]
) -> NDArray[np.int32]:
    """The merges as ids. Where the file has none, they follow from the tokens."""
    if _MERGES not in meta.values:
        return recover_merges(tokens, special_ids)
    merges, where = meta.strings(_MERGES), f"{meta.cursor.name}: {_MERGES}"
    if texts and isinstance(texts[0], bytes):
        return _raw_merges(merges, tokens, special_ids, where)
    parts = _parts(merges)
    if parts is None:
        meta.cursor.fail(_MERGES, "a merge that is not two texts", "two texts and one space")
    words = (str(text) if raw else "" for text, raw in zip(texts, tokens, strict=True))
    return merge_ids(parts[::2], parts[1::2], _first_ids(words), where)


def _parts(merges: Strings) -> list[str] | None:
    """Left, right, left, right ...; None if a merge is not two texts and one space."""
    texts = [merge for merge in merges if isinstance(merge, str)]
    if len(texts) < len(merges) or set(map(str.count, texts, repeat(" "))) - {1}:
        return None
    return " ".join(texts).split(" ") if texts else []


def _raw_merges(
    merges: Strings, tokens: Sequence[bytes], special_ids: frozenset[int], where: str
) -> NDArray[np.int32]:
    """Merges beside raw tokens. Mostly they are byte-level text all the same.

    If they are raw too, a space may be part of a text or stand between two, and nothing tells
    which; so they are recovered from the tokens.
    """
    parts = _parts(merges)
    if parts:
        with suppress(FormatError):
            raws = token_bytes(parts, where)
            return merge_ids(raws[::2], raws[1::2], _first_ids(tokens), where)
    return recover_merges(tokens, special_ids)


def _first_ids(texts: Iterable[AnyStr]) -> dict[AnyStr, int]:
    """The id of each text: of those spelled alike, the first. Nothing is the text of padding."""
    ids: dict[AnyStr, int] = {}
    for i, text in enumerate(texts):
        if text:
            ids.setdefault(text, i)
    return ids


def _splits_digits(
    meta: Meta,
    pre: str | None,
    tokens: Sequence[bytes],
    special_ids: frozenset[int],
    notices: list[str],
) -> bool:
    """Whether every digit comes apart before merging."""
    if pre is not None:
        return PRE_TOKENIZERS[pre]
    name = meta.text(_PRE, "default")
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    if name != "default":
        expected = " or ".join(map(repr, PRE_TOKENIZERS))
        advice = f"choose one with --pre, like --pre {next(iter(PRE_TOKENIZERS))}"
        meta.cursor.fail(_PRE, f"unsupported pre-tokenizer {name!r}", expected, advice)
    splits = not joins_digits(tokens, special_ids)
    said = "'default'" if _PRE in meta.values else "missing"
    how = "come apart, as no token has two" if splits else "stay together, as tokens have two"
    notices.append(f"{_PRE} is {said}, so digits {how}; choose with --pre or pre=")
    return splits


# ------------------------------------------------------------------------------------------------
# Ids


def _with_ids(meta: Meta, vocab: Vocab, n_tokens: int, notices: list[str]) -> Vocab:
    """The vocabulary with the ids that the file names: begin, end, and more ends."""
    ids: dict[str, int | None] = {}
    for name in _IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        if key in meta.values:
            value = meta.integer(key)
            is_told = len(vocab.tokens) <= value < n_tokens and name == "padding"
            ids[name] = None if is_told else known_id(key, value, vocab, notices)
    ends = {ids.get("eot"), ids.get("eom")}
    if ENDS in meta.values:
        others = np.unique(meta.int32s(ENDS))
        is_known = (others >= 0) & (others < len(vocab.tokens))
        ends.update(others[is_known].tolist())
        for value in others[~is_known][:1].tolist():  # one notice for all
            known_id(ENDS, value, vocab, notices)
    return replace(
        vocab,
        eos_id=ids.get("eos"),
        bos_id=ids.get("bos"),
        other_end_ids=frozenset(i for i in ends if i is not None and i != ids.get("eos")),
    )
