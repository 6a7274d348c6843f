"""GGUF version 3, written: all that llama.cpp needs, and what its converter leaves out.

    "GGUF"  u32 version  u64 n_tensors  u64 n_keys    keys    tensor infos    padding    tensors

Tensors follow each other in the order of their architecture, each padded to 32 bytes. Keys of a
GGUF source that are none of ours (author, license, chat template) are carried over as they are. A
model may be cut into parts as `llama-gguf-split` cuts it: `gguf.parts` has what they look like.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from starcoder.core.tensor import Tensor, TensorType, Weights
from starcoder.formats.carried import encoded
from starcoder.formats.gguf.header import MAGIC
from starcoder.formats.gguf.parts import COUNT, N_TENSORS, NO, SPLIT_ID, other_sets, part_path
from starcoder.formats.gguf.vocab import ENDS, UNEMBEDDED
from starcoder.formats.io.atomic import Piece, write_file
from starcoder.formats.io.atomic_parts import File, write_parts
from starcoder.model import models
from starcoder.model.architecture import Architecture
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.config import ModelConfig
from starcoder.model.vocab import BYTE_TEXT, Vocab

__all__ = ["file_type", "older_parts", "part_paths", "write"]

_VERSION, _ALIGNMENT = 3, 32
_U16, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 2, 4, 5, 6, 7, 8, 9
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5

_FIM = {  # the key's middle: how the family spells the token
    "fim_pre": ("<fim_prefix>", "<fim-prefix>"),
    "fim_suf": ("<fim_suffix>", "<fim-suffix>"),
    "fim_mid": ("<fim_middle>", "<fim-middle>"),
    "fim_pad": ("<fim_pad>", "<fim-pad>"),
    "fim_rep": ("<reponame>", "<repo_name>"),
    "fim_sep": ("<filename>", "<file_sep>"),
}


def write(
    path: Path,
    checkpoint: Checkpoint,
    weights: Mapping[str, Weights],
    *,
    number: int | None = None,
    origin: Mapping[str, str],
    max_part_bytes: int | None = None,
    on_start: Callable[[int], None] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Write the model with these weights; returns the bytes of the file, or of all parts.

    Args:
        path: the file; see `write_file`. Parts have its name and their numbers.
        checkpoint: configuration and vocabulary.
        weights: by canonical name, as they shall be in the file.
        number: llama.cpp's for this mix of types; by default that of most weights.
        origin: more keys, of text, where the file before has none of these.
        max_part_bytes: of the tensors in a part; None: one file.
        on_start: is told how many bytes the file will have.
        on_bytes: is told how many bytes were made, again and again.

    Raises:
        WriteError: the file cannot be written.
    """
    weights = _in_order(checkpoint, weights)
    others = {key: encoded(text) for key, text in origin.items()} | dict(checkpoint.carried)
    keys = _keys(checkpoint, weights, number, others)
    if max_part_bytes is None:
        files = [_file(path, keys, weights)]
    else:
        name = _fingerprint(_header(keys, weights), checkpoint.tensors)
        marks = {SPLIT_ID: encoded(name)}
        files = _parts(path, keys, weights, max_part_bytes, marks)
    nbytes = sum(file.nbytes for file in files)
    if on_start is not None:
        on_start(nbytes)
    if max_part_bytes is None:
        write_file(*files[0], on_bytes)
    else:
        write_parts(files, on_bytes)
    return nbytes


def part_paths(
    path: Path, checkpoint: Checkpoint, weights: Mapping[str, Weights], max_part_bytes: int
) -> list[Path]:
    """The files that `write` makes of these weights in parts."""
    count = _count_parts(checkpoint, weights, max_part_bytes)
    return [part_path(path, i, count) for i in range(count)]


def older_parts(
    path: Path, checkpoint: Checkpoint, weights: Mapping[str, Weights], max_part_bytes: int
) -> list[Path]:
    """Parts of the same name but another number of them, which writing leaves as they are."""
    return other_sets(path, _count_parts(checkpoint, weights, max_part_bytes))


def _count_parts(
    checkpoint: Checkpoint, weights: Mapping[str, Weights], max_part_bytes: int
) -> int:
    return len(_cut(_in_order(checkpoint, weights), max_part_bytes))


def _in_order(checkpoint: Checkpoint, weights: Mapping[str, Weights]) -> dict[str, Weights]:
    return models.find(checkpoint).in_order(weights, checkpoint.config.n_layers)


def file_type(weights: Mapping[str, Weights]) -> int:
    """llama.cpp's number for the type that most weights have."""
    counts: dict[TensorType, int] = {}
    for w in weights.values():
        counts[w.type] = counts.get(w.type, 0) + math.prod(w.shape)
    return max(counts, key=lambda kind: counts[kind]).gguf_file


# ------------------------------------------------------------------------------------------------
# Files


def _file(path: Path, keys: Mapping[str, bytes], weights: Mapping[str, Weights]) -> File:
    header = _header(keys, weights)
    nbytes = len(header) + sum(_padded(_nbytes(w)) for w in weights.values())
    return File(path, nbytes, _pieces(header, weights))


def _parts(
    path: Path,
    keys: Mapping[str, bytes],
    weights: Mapping[str, Weights],
    max_part_bytes: int,
    marks: Mapping[str, bytes],
) -> list[File]:
    """The first part has all keys, each its tensors, which part of what it is, and the marks."""
    cuts = _cut(weights, max_part_bytes)
    counts = {COUNT: _u16(len(cuts)), N_TENSORS: struct.pack("<Ii", _I32, len(weights))}
    files = []
    for i, names in enumerate(cuts):
        own = {**(keys if i == 0 else {}), NO: _u16(i), **counts, **marks}
        files.append(_file(part_path(path, i, len(cuts)), own, {n: weights[n] for n in names}))
    return files


def _fingerprint(header: bytes, tensors: Mapping[str, Tensor]) -> str:
    """What tells a model from others of its name: its keys, its types, some of each tensor."""
    digest = hashlib.sha256(header)
    for tensor in tensors.values():
        digest.update(tensor.rows(0, 1).data.tobytes())
    return digest.hexdigest()[:16]


def _cut(weights: Mapping[str, Weights], max_part_bytes: int) -> list[list[str]]:
    """Names of the tensors of each part: as many as the bytes allow, but at least one."""
    cuts: list[list[str]] = [[]]
    size = 0
    for name, w in weights.items():
        nbytes = _padded(_nbytes(w))
        if cuts[-1] and size + nbytes > max_part_bytes:
            cuts.append([])
            size = 0
        cuts[-1].append(name)
        size += nbytes
    return cuts


def _pieces(header: bytes, weights: Mapping[str, Weights]) -> Iterator[Piece]:
    yield header
    for w in weights.values():
        yield from w.pieces()
        yield bytes(_padded(_nbytes(w)) - _nbytes(w))


def _nbytes(w: Weights) -> int:
    return w.type.nbytes(w.shape)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


# ------------------------------------------------------------------------------------------------
# Header


def _header(keys: Mapping[str, bytes], weights: Mapping[str, Weights]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(weights), len(keys))]
    for key, value in keys.items():
        parts += _raw(key), value
    offset = 0
    for name, w in weights.items():
        dims = reversed(w.shape)
        parts.append(_raw(name) + struct.pack(f"<I{len(w.shape)}Q", len(w.shape), *dims))
        parts.append(struct.pack("<IQ", int(w.type), offset))
        offset += _padded(_nbytes(w))
    header = b"".join(parts)
    return header + bytes(_padded(len(header)) - len(header))


def _keys(
    checkpoint: Checkpoint,
    weights: Mapping[str, Weights],
    number: int | None,
    others: Mapping[str, bytes],
) -> dict[str, bytes]:
    architecture = models.find(checkpoint)
    keys = {
        "general.architecture": encoded(architecture.gguf),
        "general.name": others.get("general.name", encoded(checkpoint.config.name)),
        "general.file_type": _u32(file_type(weights) if number is None else number),
        "general.quantization_version": _u32(2),
        **_setting_keys(architecture, checkpoint.config),
        **_vocab_keys(checkpoint.vocab),
    }
    return keys | {key: value for key, value in others.items() if key not in keys}


def _setting_keys(architecture: Architecture, config: ModelConfig) -> dict[str, bytes]:
    encode: dict[type, Callable[[Any], bytes]] = {int: _u32, float: _f32, str: encoded}
    keys = {}
    for setting in architecture.settings:
        if setting.gguf is not None:
            value = setting.gguf.spelled(getattr(config, setting.field))
            name = f"{architecture.gguf}.{setting.gguf.name}"
            keys[name] = encode[setting.gguf.kind](value)
    return keys


def _vocab_keys(vocab: Vocab) -> dict[str, bytes]:
    texts, kinds = _texts(vocab)
    pairs = np.asarray(vocab.merges, np.int64).reshape(-1, 2).tolist()
    keys = {
        "model": encoded("gpt2"),
        "pre": encoded("refact" if vocab.split_digits else "gpt-2"),
        "tokens": _strings(texts),
        "token_type": _i32s(kinds),
        "merges": _strings([f"{texts[left]} {texts[right]}" for left, right in pairs]),
        "add_bos_token": struct.pack("<I?", _BOOL, False),
    }
    ids: dict[str, int | None] = {
        "bos": vocab.bos_id,
        "eos": vocab.eos_id,
        "unknown": vocab.find("<|endoftext|>"),
    }
    for name, spellings in _FIM.items():
        ids[name] = next(filter(_known, map(vocab.find, spellings)), None)
    others = sorted(vocab.other_end_ids - {vocab.eos_id})
    ids |= dict(zip(("eot", "eom"), others, strict=False))  # the ends that llama.cpp has names for
    keys |= {f"{name}_token_id": _u32(i) for name, i in ids.items() if i is not None}
    keys = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    if len(others) > 2:
        keys[ENDS] = _i32s(others)
    if vocab.unembedded:
        keys[UNEMBEDDED] = _strings(
            [raw.decode("utf-8", "replace") for raw in sorted(vocab.unembedded)]
        )
    return keys


def _known(token_id: int | None) -> bool:
    return token_id is not None


def _texts(vocab: Vocab) -> tuple[list[str], list[int]]:
    """What stands for each token, and its kind: special tokens in plain text, padding by number."""
    texts, kinds = [], []
    for i, raw in enumerate(vocab.tokens):
        if i in vocab.special_ids:
            text, kind = raw.decode("utf-8", "replace"), _CONTROL
        elif raw:
            text, kind = raw.decode("latin-1").translate(_BYTE_TEXT), _NORMAL
        else:
            text, kind = f"[PAD{i}]", _UNUSED
        texts.append(text)
        kinds.append(kind)
    return texts, kinds


_BYTE_TEXT = dict(enumerate(BYTE_TEXT))


# ------------------------------------------------------------------------------------------------
# Values, each after its type


def _raw(text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    return struct.pack("<Q", len(raw)) + raw


def _strings(texts: list[str]) -> bytes:
    head = struct.pack("<IIQ", _ARRAY, _STRING, len(texts))
    return head + b"".join(map(_raw, texts))


def _u32(number: int) -> bytes:
    return struct.pack("<II", _U32, number)


def _f32(number: float) -> bytes:
    return struct.pack("<If", _F32, number)


def _u16(number: int) -> bytes:
    return struct.pack("<IH", _U16, number)


def _i32s(numbers: list[int]) -> bytes:
    return struct.pack(f"<IIQ{len(numbers)}i", _ARRAY, _I32, len(numbers), *numbers)
