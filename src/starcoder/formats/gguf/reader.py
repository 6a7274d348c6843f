"""GGUF, versions 2 and 3, little-endian: the format of llama.cpp. Reading only.

`gguf.header` knows the bytes of the header, `gguf.parts` how a model lies in several files, and
`gguf.vocab` the tokenizer's keys; this module knows what the other keys mean. Matrices stay in the
mapped file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from starcoder.core.tensor import Tensor, TensorType
from starcoder.formats.gguf.carry import carried_keys
from starcoder.formats.gguf.header import MAGIC, Info, Meta
from starcoder.formats.gguf.parts import Part, open_parts
from starcoder.formats.gguf.vocab import read_vocab
from starcoder.formats.io.mapped import Cursor
from starcoder.formats.io.reject import DAMAGED, shown
from starcoder.model.architecture import Architecture, Key
from starcoder.model.checkpoint import Checkpoint, Format, settle
from starcoder.model.config import ModelConfig
from starcoder.model.models import ARCHITECTURES

__all__ = ["MAGIC", "read"]

_TYPES = {kind.value: kind for kind in TensorType}


def read(path: Path, pre: str | None = None) -> Checkpoint:
    """The model in a GGUF file, or in the parts of one.

    Args:
        path: the file, or any of the parts.
        pre: the name of the pre-tokenizer, whatever the file says.

    Raises:
        FormatError: anything in a file that is not as it should be.
        MemoryLimitError: no memory for what is copied.
    """
    parts = open_parts(path)
    first = parts[0]
    name, meta = first.cursor.name, first.meta
    architecture = _architecture(meta, sum(len(part.infos) for part in parts))
    infos = [info for part in parts for info in part.infos]
    n_rows = [info.shape[0] for info in infos if info.name == architecture.embedding]
    vocab, notices = read_vocab(meta, n_rows[0] if n_rows else _NO_ROWS, pre)
    config = _config(meta, architecture, len(vocab.tokens))
    tensors: dict[str, Tensor] = {}
    for part in parts:
        tensors |= _tensors(part)
    tensors = settle(tensors, architecture, name, keeps_positions=True)
    label = f"GGUF v{first.version}" + (f", {len(parts)} parts" if len(parts) > 1 else "")
    carried = carried_keys(meta, config.n_vocab)
    return Checkpoint(
        config,
        vocab,
        tensors,
        Format.GGUF,
        label,
        name,
        tuple(notices),
        len(parts),
        carried,
    )


_NO_ROWS = 1 << 62  # no embedding at all is told later, with its name


def _architecture(meta: Meta, n_tensors: int) -> Architecture:
    """One of ours; what is no model of ours is refused by the name it has."""
    kind = meta.text("general.type", "model")
    if kind != "model":
        advice = "merge it into its model, with peft's merge_and_unload, and convert that"
        advice = advice if kind == "adapter" else "use the file of the model itself"
        what = "a LoRA adapter" if kind == "adapter" else f"a file of the kind {kind!r}"
        meta.cursor.fail("general.type", what, "a whole model", advice)
    ours = {architecture.gguf: architecture for architecture in ARCHITECTURES.values()}
    name = meta.text("general.architecture")
    if name not in ours:
        found = f"a model of the architecture {name!r}"
        expected = " or ".join(f"{key!r}: {ours[key].models}" for key in ours)
        advice = "run it with llama.cpp, or use a model of this family"
        meta.cursor.fail("general.architecture", found, expected, advice)
    if not n_tensors:
        meta.cursor.fail("tensors", "a vocabulary without weights", "a whole model", "use another")
    return ours[name]


# ------------------------------------------------------------------------------------------------
# Configuration


def _config(meta: Meta, architecture: Architecture, n_vocab: int) -> ModelConfig:
    known: dict[str, Any] = {"n_vocab": n_vocab}
    for setting in architecture.settings:
        if setting.gguf is not None:
            default = setting.gguf.default_after(known)
            value = _value(meta, f"{architecture.gguf}.{setting.gguf.name}", setting.gguf, default)
            known[setting.field] = setting.gguf.understood(value, known)
    return ModelConfig(
        architecture=architecture.name,
        name=shown(meta.text("general.name", "", "replace")),
        source=meta.cursor.name,
        **known,
    )


def _value(meta: Meta, name: str, key: Key, default: Any) -> Any:
    if key.kind is float:
        return _as_written(meta.number(name, default))
    if key.words is None:
        return meta.integer(name, default)
    word = meta.text(name, default)
    if word not in key.words:
        meta.cursor.fail(name, repr(word), " or ".join(key.words), "")
    return word


def _as_written(number: float) -> float:
    """The decimal that became a 32-bit float: 9.999999747e-06 was written as 1e-5."""
    with np.errstate(over="ignore"):  # what is too large becomes infinity, which is refused
        return float(str(np.float32(number)))


# ------------------------------------------------------------------------------------------------
# Tensors


def _tensors(part: Part) -> dict[str, Tensor]:
    """Views of a mapped file, after a check that each lies in it and none on another."""
    cursor = part.cursor
    alignment = _alignment(part.meta)
    start = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    end, before = 0, "none"
    for info in sorted(part.infos, key=lambda info: info.offset):
        if info.name in tensors:
            cursor.fail(f"tensor {info.name}", "the same name twice", "one of each", DAMAGED)
        kind = _tensor_type(cursor, info)
        if info.offset % alignment or info.offset < end:
            expected = f"a multiple of {alignment} from {end} on, after tensor {before}"
            cursor.fail(f"tensor {info.name}", f"offset {info.offset}", expected, DAMAGED)
        cursor.pos = min(start + info.offset, len(cursor.data))
        data = cursor.view(kind.nbytes(info.shape), f"tensor {info.name}")
        tensors[info.name] = Tensor(kind, info.shape, data)
        end, before = info.offset + data.nbytes, info.name
    _check_quantization(part.meta, tensors)
    return tensors


def _alignment(meta: Meta) -> int:
    key = "general.alignment"
    alignment = meta.integer(key, 32)
    if alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        meta.cursor.fail(key, str(alignment), "a power of two from 8 to 4096", DAMAGED)
    return alignment


def _tensor_type(cursor: Cursor, info: Info) -> TensorType:
    what = f"tensor {info.name}"
    kind = _TYPES.get(info.type)
    if kind is None:
        known = " ".join(TensorType.__members__)
        cursor.fail(what, f"type {info.type}", known, "quantize it to one of these types")
    if min(info.shape) < 1:
        cursor.fail(what, f"shape {info.shape}", "at least 1 in each dimension", DAMAGED)
    if info.shape[-1] % kind.block_len:
        expected = f"a multiple of {kind.block_len} for {kind.name}"
        cursor.fail(what, f"rows of {info.shape[-1]} weights", expected, DAMAGED)
    return kind


def _check_quantization(meta: Meta, tensors: dict[str, Tensor]) -> None:
    key = "general.quantization_version"
    version = meta.integer(key, 2)
    if version != 2 and any(t.type.block_len > 1 for t in tensors.values()):
        meta.cursor.fail(key, str(version), "2", "quantize the original weights again")
