"""tokenizer.json of Hugging Face's `tokenizers`: the vocabulary of a byte-level BPE. Reading only.

Only the settings of the StarCoder family are accepted, each by its exact name. No regular
expression from a file is ever compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starcoder.formats._byte_level import MAX_TOKEN_LEN, MAX_TOKENS, merge_ids, token_bytes
from starcoder.formats._bytes import map_file, read_json, reject
from starcoder.vocab import Vocab

__all__ = ["read_vocab"]

_MAX_LEN = 16 << 20  # bytes; StarCoder's has 2 MB, 4 MB with merges as lists
_MAX_BRACKETS, _MAX_COMMAS = 1 << 17, 1 << 18  # bound what its values take in memory
_OTHER = "this kind of tokenizer is not supported"

_PLAIN_BPE: dict[str, tuple[Any, ...]] = {  # settings that must be off
    "dropout": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}

# What a step of splitting must say, and what it says by saying nothing.
_DIGITS = {"type": ("Digits", None), "individual_digits": (True, False)}
_BYTE_LEVEL = {
    "type": ("ByteLevel", None),
    "add_prefix_space": (False, True),
    "use_regex": (True, True),
}


def read_vocab(path: Path, n_vocab: int) -> Vocab:
    """The vocabulary, filled up to `n_vocab` ids; which token ends a document is not in the file.

    Raises:
        FormatError: another kind of tokenizer, or anything that is not as it should be.
    """
    if n_vocab > MAX_TOKENS:
        reject(path, "", f"a vocabulary of {n_vocab}", f"at most {MAX_TOKENS}")
    tokenizer = _load(path)
    model = tokenizer["model"]
    ids = _ids(path, model.get("vocab"), n_vocab)
    added = _added_tokens(path, tokenizer.get("added_tokens"), ids, n_vocab)
    texts = [""] * n_vocab
    for text, token_id in ids.items():
        texts[token_id] = text
    for token_id in added:
        texts[token_id] = ""
    tokens = token_bytes(texts, f"{path}: vocab")
    for token_id, raw in added.items():
        tokens[token_id] = raw
    return Vocab(
        tokens=tuple(tokens),
        merges=merge_ids(*_merge_parts(path, model.get("merges")), ids, f"{path}: merges"),
        special_ids=frozenset(added),
        eos_id=None,
        split_digits=_splits_digits(path, tokenizer.get("pre_tokenizer")),
    )


def _load(path: Path) -> dict[str, Any]:
    """tokenizer.json, if it describes the byte-level BPE that `starcoder.tokenizer` knows."""
    data = map_file(path)
    if len(data) > _MAX_LEN:
        reject(path, "", f"{len(data)} bytes", f"at most {_MAX_LEN}")
    raw = data[:]
    if raw.count(b"[") + raw.count(b"{") > _MAX_BRACKETS or raw.count(b",") > _MAX_COMMAS:
        reject(path, "", "more values than a vocabulary has", f"at most {_MAX_COMMAS} values")
    tokenizer = read_json(raw, str(path))
    advice = _OTHER
    if tokenizer.get("normalizer") is not None:
        reject(path, "normalizer", str(tokenizer["normalizer"])[:80], "none", advice)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        reject(path, "model", "no BPE model", "a BPE model", advice)
    for key, plain in _PLAIN_BPE.items():
        if model.get(key) not in plain:
            reject(path, f"model.{key}", repr(model[key])[:80], "none", advice)
    return tokenizer


def _splits_digits(path: Path, found: Any) -> bool:
    """Whether digits are split apart before GPT-2's pattern; other ways to split are refused."""
    steps: Any = [found]
    if isinstance(found, dict) and found.get("type") == "Sequence":
        steps = found.get("pretokenizers", [])
    n = len(steps) if isinstance(steps, list) else 0
    known = (_DIGITS, _BYTE_LEVEL)[-n:]
    if n not in (1, 2) or not all(map(_matches, steps, known)):
        expected = "ByteLevel, or Digits (individual_digits) and ByteLevel"
        reject(path, "pre_tokenizer", f"unsupported {found}", expected, _OTHER)
    return n == 2


def _matches(step: Any, known: dict[str, tuple[Any, Any]]) -> bool:
    return isinstance(step, dict) and all(
        step.get(key, silent) == value for key, (value, silent) in known.items()
    )


def _ids(path: Path, vocab: Any, n_vocab: int) -> dict[str, int]:
    """The vocabulary by text: no id twice, none out of range."""
    if not isinstance(vocab, dict) or len(vocab) > n_vocab:
        found = f"{len(vocab)} tokens" if isinstance(vocab, dict) else "no table"
        reject(path, "vocab", found, f"at most {n_vocab} tokens, as in config.json")
    values = list(vocab.values())
    if not all(type(i) is int and 0 <= i < n_vocab for i in values):
        reject(path, "vocab", "an id out of range", f"ids from 0 to {n_vocab - 1}")
    if len(set(values)) != len(values):
        reject(path, "vocab", "two texts of one id", "one id for each text")
    if max(map(len, vocab), default=0) > MAX_TOKEN_LEN:
        reject(path, "vocab", "a token too long", f"at most {MAX_TOKEN_LEN} bytes")
    return vocab


def _added_tokens(path: Path, added: Any, ids: Mapping[str, int], n_vocab: int) -> dict[int, bytes]:
    """Added tokens by id. Their text is plain, not byte-level."""
    table: dict[int, bytes] = {}
    taken = set(ids.values())
    for entry in added if isinstance(added, list) else []:
        token_id, content = (
            (entry.get("id"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        )
        if type(token_id) is not int or not 0 <= token_id < n_vocab or token_id in table:
            reject(path, "added_tokens", f"id {token_id}", f"an id from 0 to {n_vocab - 1}, once")
        if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN_LEN:
            reject(path, "added_tokens", f"{str(content)[:80]!r} as token {token_id}", "a text")
        if ids.get(content, None if token_id in taken else token_id) != token_id:
            reject(path, "added_tokens", f"another id than {token_id} in vocab", "the same id")
        table[token_id] = _utf8(path, content)
    return table


def _utf8(path: Path, content: str) -> bytes:
    try:
        return content.encode()
    except UnicodeEncodeError:
        reject(path, "added_tokens", "half a character", "UTF-8 text")


def _merge_parts(path: Path, merges: Any) -> tuple[list[str], list[str]]:
    """The left and right texts of all merges, written "a b" or ["a", "b"]."""
    if not isinstance(merges, list):
        reject(path, "merges", f"a {type(merges).__name__}", "a list")
    if len(merges) > MAX_TOKENS:
        reject(path, "merges", f"{len(merges)} merges", f"at most {MAX_TOKENS}")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not _all_text(pair):
            reject(path, "merges", f"{str(merges[i])[:80]} as merge {i}", "two texts")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _all_text(values: list[Any]) -> bool:
    return all(type(value) is str for value in values)
