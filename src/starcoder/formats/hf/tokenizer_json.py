"""tokenizer.json of Hugging Face's `tokenizers`: a byte-level BPE in one file. Reading only.

Only the settings of the StarCoder family are accepted, each by its exact name. No regular
expression from a file is ever compiled. What the parts must hold, `hf.vocab` knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starcoder.formats.byte_level import MAX_TOKENS
from starcoder.formats.hf.files import load_table
from starcoder.formats.hf.vocab import Spelled, read_added
from starcoder.formats.io.reject import reject

__all__ = ["read_tokenizer"]

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


def read_tokenizer(path: Path) -> Spelled:
    """The parts of the vocabulary.

    Raises:
        FormatError: another kind of tokenizer, or anything that is not as it should be.
    """
    tokenizer = _load(path)
    model = tokenizer["model"]
    added = tokenizer.get("added_tokens")
    entries = [e if isinstance(e, dict) else {} for e in (added if isinstance(added, list) else [])]
    return Spelled(
        path,
        model.get("vocab"),
        read_added(path, "added_tokens", [(e.get("id"), e.get("content")) for e in entries]),
        f"{path}: merges",
        *_merge_parts(path, model.get("merges")),
        split_digits=_splits_digits(path, tokenizer.get("pre_tokenizer")),
    )


def _load(path: Path) -> dict[str, Any]:
    """tokenizer.json, if it describes the byte-level BPE that `starcoder.text.tokenizer` knows."""
    tokenizer = load_table(path)
    if tokenizer.get("normalizer") is not None:
        reject(path, "normalizer", str(tokenizer["normalizer"])[:80], "none", _OTHER)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        reject(path, "model", "no BPE model", "a BPE model", _OTHER)
    for key, plain in _PLAIN_BPE.items():
        if model.get(key) not in plain:
            reject(path, f"model.{key}", repr(model[key])[:80], "none", _OTHER)
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


def _merge_parts(path: Path, merges: Any) -> tuple[list[str], list[str]]:
    """The left and right texts of all merges, written "a b" or ["a", "b"]."""
    if not isinstance(merges, list):
        reject(path, "merges", f"a {type(merges).__name__}", "a list")
    if len(merges) > MAX_TOKENS:
        reject(path, "merges", f"{len(merges)} merges", f"at most {MAX_TOKENS}")
    pairs = [_pair(merge) for merge in merges]
    if None in pairs:
        i = pairs.index(None)
        reject(path, "merges", f"{str(merges[i])[:80]} as merge {i}", "two texts")
    whole = [pair for pair in pairs if pair is not None]
    return [left for left, _ in whole], [right for _, right in whole]


def _pair(merge: Any) -> tuple[str, str] | None:
    match merge:
        case str() if merge.count(" ") == 1:
            left, _, right = merge.partition(" ")
            return left, right
        case [str(left), str(right)]:
            return left, right
    return None
