"""vocab.json and merges.txt: the vocabulary as GPT-2's files spell it. Reading only.

Special tokens come from the files beside them: added_tokens.json, tokenizer_config.json and
special_tokens_map.json; those of the family are known by their names besides. How text is split
before merging, no file says: every digit apart as in StarCoder, unless some merge has a digit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from starcoder.formats.byte_level import MAX_TOKEN_LEN, MAX_TOKENS, SPECIAL_NAMES
from starcoder.formats.hf.files import check_file, load_optional, load_table
from starcoder.formats.hf.vocab import Spelled, as_bytes, read_added
from starcoder.formats.io.mapped import map_file
from starcoder.formats.io.reject import reject

__all__ = ["has_files", "read_vocab_files"]

_MAX_MERGES = 4 << 20  # bytes; StarCoder's have 440 kB
_GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
_CLASSES = (None, *_GPT2, "PreTrainedTokenizerFast", "TokenizersBackend")
_KINDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MORE = ("additional_special_tokens", "extra_special_tokens")
_DIGIT = re.compile(r"[0-9]")


def has_files(folder: Path) -> bool:
    """Whether both files are there."""
    return all(os.path.exists(folder / name) for name in ("vocab.json", "merges.txt"))


def read_vocab_files(folder: Path, notices: list[str]) -> Spelled:
    """The parts of the vocabulary; how text is split is one of the `notices` if it was guessed.

    Raises:
        FormatError: another kind of tokenizer, or anything that is not as it should be.
    """
    path = folder / "vocab.json"
    vocab = load_table(path, MAX_TOKENS)
    merges_path = folder / "merges.txt"
    merges = _merge_lines(merges_path)
    config = load_optional(folder / "tokenizer_config.json", notices)
    special = load_optional(folder / "special_tokens_map.json", notices)
    _check_class(folder / "tokenizer_config.json", config)
    added = _added_tokens(folder, config)
    named = {as_bytes(folder, "special tokens", text) for text in _special_texts(special, config)}
    nameless = named - set(added.values())
    for raw in sorted(named | SPECIAL_NAMES):
        token_id = vocab.get(raw.decode())
        if type(token_id) is int and token_id >= 0:
            added.setdefault(token_id, raw)
            nameless.discard(raw)
    split_digits = not any(map(_DIGIT.search, merges))
    if split_digits or config.get("tokenizer_class") not in _GPT2:
        how = "every digit stands apart" if split_digits else "digits are joined, as GPT-2's are"
        why = "no merge has one" if split_digits else "its merges join them"
        notices.append(f"vocab.json does not say how text is split: {how}, for {why}")
    halves = _halves(merges_path, merges)
    where = str(merges_path)
    return Spelled(path, vocab, added, where, *halves, split_digits, frozenset(nameless))


def _check_class(path: Path, config: dict[str, Any]) -> None:
    found = config.get("tokenizer_class")
    if found not in _CLASSES:
        advice = "this kind of tokenizer is not supported"
        reject(path, "tokenizer_class", repr(found)[:80], " or ".join(_GPT2), advice)
    if config.get("add_prefix_space") not in (None, False):
        reject(path, "add_prefix_space", repr(config["add_prefix_space"])[:80], "false or absent")


# ------------------------------------------------------------------------------------------------
# Special tokens


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, bytes]:
    """Tokens with an id of their own, from both files that may have them."""
    path = folder / "added_tokens.json"
    table = load_table(path, MAX_TOKENS) if os.path.exists(path) else {}
    pairs = [(token_id, text) for text, token_id in table.items()]
    added = read_added(path, "", pairs)
    path, key = folder / "tokenizer_config.json", "added_tokens_decoder"
    decoder = config.get(key)
    pairs = [
        (int(i) if re.fullmatch(r"[0-9]{1,9}", i) else i, _content(entry))
        for i, entry in (decoder.items() if isinstance(decoder, dict) else ())
    ]
    for token_id, raw in read_added(path, key, pairs).items():
        if added.setdefault(token_id, raw) != raw:
            found = f"another token {token_id} than in added_tokens.json"
            reject(path, key, found, "the same in both")
    return added


def _special_texts(*tables: dict[str, Any]) -> list[str]:
    """What the files name as special, in any of the ways that transformers writes it."""
    texts = []
    for table in tables:
        values = [table.get(f"{kind}_token") for kind in _KINDS]
        for more in map(table.get, _MORE):
            values += more if isinstance(more, list) else []
            values += more.values() if isinstance(more, dict) else []
        texts += [text for text in map(_content, values) if isinstance(text, str)]
    return [text for text in texts if 0 < len(text) <= MAX_TOKEN_LEN]


def _content(value: Any) -> Any:
    """A token's text, which may stand alone or in a table."""
    return value.get("content") if isinstance(value, dict) else value


# ------------------------------------------------------------------------------------------------
# Merges


def _merge_lines(path: Path) -> list[str]:
    """The lines of merges.txt without a first one of the version and blank ones at the end."""
    data = map_file(check_file(path))
    if len(data) > _MAX_MERGES:
        reject(path, "", f"{len(data)} bytes", f"at most {_MAX_MERGES}")
    try:
        text = data[:].decode("utf-8-sig")
    except UnicodeDecodeError:
        reject(path, "", "bytes that are not UTF-8", "UTF-8 text")
    if text.count("\n") > 2 * MAX_TOKENS:
        reject(path, "", f"{text.count(chr(10))} lines", f"at most {MAX_TOKENS} merges")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        del lines[-1]
    return lines[1:] if lines and lines[0].startswith("#version") else lines


def _halves(path: Path, lines: list[str]) -> tuple[list[str], list[str]]:
    """The left and right texts of all merges."""
    if len(lines) > MAX_TOKENS:
        reject(path, "", f"{len(lines)} merges", f"at most {MAX_TOKENS}")
    for i, line in enumerate(lines):
        if line.count(" ") != 1:
            reject(path, f"merge {i}", repr(line[:80]), "two texts and one space")
    halves = [line.partition(" ") for line in lines]
    return [left for left, _, _ in halves], [right for _, _, right in halves]
