"""The vocabulary of a Hugging Face directory as one `Vocab`, whichever files spell it.

`hf.tokenizer_json` and `hf.vocab_json` take the files apart; here is what both must hold: each id
once and in range, added tokens that agree with the rest, merges of tokens. Added tokens for which
the embedding has no row (a [PAD] that was added for training) are dropped, with a notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from starcoder.formats.byte_level import MAX_TOKEN_LEN, MAX_TOKENS, merge_ids, token_bytes
from starcoder.formats.hf.names import listed
from starcoder.formats.io.reject import reject
from starcoder.model.vocab import Vocab

__all__ = ["Spelled", "as_bytes", "join", "read_added"]

_MAX_ADDED = 1 << 15  # StarCoder adds 19, Llama 3 some 256


class Spelled(NamedTuple):
    """A vocabulary as its files spell it."""

    path: Path  # of the tokens, for messages
    vocab: Any  # byte-level text of each token, and its id
    added: Mapping[int, bytes]  # tokens matched whole
    merges: str  # where the merges stand, for messages
    lefts: list[str]  # of each merge
    rights: list[str]
    split_digits: bool
    nameless: frozenset[bytes] = frozenset()  # special tokens that have no id


def read_added(path: Path, key: str, pairs: list[tuple[Any, Any]]) -> dict[int, bytes]:
    """Added tokens by id, from pairs of id and text. The text is plain, not byte-level.

    Raises:
        FormatError: an id that is none or comes twice, or no text of a token's length.
    """
    if len(pairs) > _MAX_ADDED:
        reject(path, key, f"{len(pairs)} added tokens", f"at most {_MAX_ADDED}")
    table: dict[int, bytes] = {}
    for token_id, content in pairs:
        if type(token_id) is not int or token_id < 0 or token_id in table:
            reject(path, key, f"id {token_id}"[:80], "a whole number, once")
        if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN_LEN:
            reject(path, key, f"{str(content)[:80]!r} as token {token_id}", "a text")
        table[token_id] = as_bytes(path, key, content)
    return table


def as_bytes(path: Path, key: str, content: str) -> bytes:
    """The UTF-8 of a token's text.

    Raises:
        FormatError: half a character.
    """
    try:
        return content.encode()
    except UnicodeEncodeError:
        reject(path, key, "half a character", "UTF-8 text")


def join(spelled: Spelled, n_vocab: int, notices: list[str]) -> Vocab:
    """One value of all parts, with `n_vocab` ids; which token ends a document is not in them.

    Raises:
        FormatError: parts that contradict each other or the number of ids.
    """
    path = spelled.path
    if n_vocab > MAX_TOKENS:
        reject(path, "", f"a vocabulary of {n_vocab}", f"at most {MAX_TOKENS}")
    beyond = {i: raw for i, raw in spelled.added.items() if i >= n_vocab}
    n_lacking = len(beyond) + len(spelled.nameless)
    if n_lacking > MAX_TOKENS:  # no more could be read back from a GGUF file
        found = f"{n_lacking} added tokens without a row in the embedding"
        reject(path, "added_tokens", found, f"at most {MAX_TOKENS}")
    added = {i: raw for i, raw in spelled.added.items() if i < n_vocab}
    ids = _ids(path, spelled.vocab, n_vocab, beyond)
    _check_added(path, added | beyond, ids)
    texts = [""] * n_vocab
    for text, token_id in ids.items():
        texts[token_id] = text
    for token_id in added:
        texts[token_id] = ""
    tokens = token_bytes(texts, f"{path}: vocab")
    for token_id, raw in added.items():
        tokens[token_id] = raw
    lacking = (spelled.nameless | frozenset(beyond.values())) - frozenset(added.values())
    _note(beyond, spelled.nameless & lacking, n_vocab, notices)
    return Vocab(
        tokens=tuple(tokens),
        merges=merge_ids(spelled.lefts, spelled.rights, ids, spelled.merges),
        special_ids=frozenset(added),
        eos_id=None,
        split_digits=spelled.split_digits,
        unembedded=lacking,
    )


def _ids(path: Path, vocab: Any, n_vocab: int, beyond: Mapping[int, bytes]) -> dict[str, int]:
    """The vocabulary by text without what is `beyond`: no id twice, none out of range."""
    if not isinstance(vocab, dict):
        reject(path, "vocab", "no table", f"at most {n_vocab} tokens, as in config.json")
    ids: dict[str, int] = vocab
    if beyond:
        dropped = {(raw.decode(), i) for i, raw in beyond.items()}
        ids = {t: i for t, i in vocab.items() if type(i) is not int or (t, i) not in dropped}
    if len(ids) > n_vocab:
        reject(path, "vocab", f"{len(ids)} tokens", f"at most {n_vocab}, as in config.json")
    values = list(ids.values())
    if not all(type(i) is int and 0 <= i < n_vocab for i in values):
        reject(path, "vocab", "an id out of range", f"ids from 0 to {n_vocab - 1}")
    if len(set(values)) != len(values):
        reject(path, "vocab", "two texts of one id", "one id for each text")
    if max(map(len, ids), default=0) > MAX_TOKEN_LEN:
        reject(path, "vocab", "a token too long", f"at most {MAX_TOKEN_LEN} bytes")
    return ids


def _check_added(path: Path, added: Mapping[int, bytes], ids: Mapping[str, int]) -> None:
    """Added tokens may stand in the vocabulary too, but then with the same id and text."""
    taken = set(ids.values())
    for token_id, raw in added.items():
        if ids.get(raw.decode(), None if token_id in taken else token_id) != token_id:
            reject(path, "added_tokens", f"another id than {token_id} in vocab", "the same id")


def _note(
    beyond: Mapping[int, bytes], nameless: frozenset[bytes], n_vocab: int, notices: list[str]
) -> None:
    if beyond:
        names = listed(f"{_shown(raw)} (id {i})" for i, raw in beyond.items())
        what = f"the embedding has {n_vocab} rows and none for these added tokens: {names}"
        notices.append(f"{what}; they are dropped")
    if nameless:
        names = listed(map(_shown, nameless))
        notices.append(f"special tokens that no file gives an id are dropped: {names}")


def _shown(raw: bytes) -> str:
    return repr(raw.decode())[:80]
