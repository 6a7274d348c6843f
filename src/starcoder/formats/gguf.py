"""GGUF, versions 2 and 3, little-endian: the format of llama.cpp. Reading only.

`_gguf_header` knows the bytes of the header, `_gguf_parts` how a model lies in several files, and
`_gguf_vocab` the tokenizer's keys; this module knows what the other keys mean. Matrices stay in the
mapped file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from starcoder.checkpoint import Checkpoint
from starcoder.config import ACTIVATION_NAMES, ModelConfig
from starcoder.formats._bytes import DAMAGED, Cursor, settle, shown
from starcoder.formats._gguf_carry import carried_keys
from starcoder.formats._gguf_header import MAGIC, Info, Meta
from starcoder.formats._gguf_parts import Part, open_parts
from starcoder.formats._gguf_vocab import read_vocab
from starcoder.tensor import Tensor, TensorType

__all__ = ["MAGIC", "read"]

_TYPES = {kind.value: kind for kind in TensorType}
_EMBEDDING = "token_embd.weight"


def read(path: Path, pre: str | None = None) -> Checkpoint:
    """The model in a GGUF file of architecture `starcoder`, or in the parts of one.

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
    _check_kind(meta, sum(len(part.infos) for part in parts))
    n_rows = [info.shape[0] for part in parts for info in part.infos if info.name == _EMBEDDING]
    vocab, notices = read_vocab(meta, n_rows[0] if n_rows else _NO_ROWS, pre)
    config = _config(meta, len(vocab.tokens))
    tensors: dict[str, Tensor] = {}
    for part in parts:
        tensors |= _tensors(part)
    tensors = settle(tensors, name, keeps_positions=True)
    label = f"GGUF v{first.version}" + (f", {len(parts)} parts" if len(parts) > 1 else "")
    carried = carried_keys(meta, config.n_vocab)
    return Checkpoint(config, vocab, tensors, label, name, tuple(notices), len(parts), carried)


_NO_ROWS = 1 << 62  # no embedding at all is told later, with its name


def _check_kind(meta: Meta, n_tensors: int) -> None:
    """What is no model of ours is refused by the name it has."""
    kind = meta.text("general.type", "model")
    if kind != "model":
        advice = "merge it into its model, with peft's merge_and_unload, and convert that"
        advice = advice if kind == "adapter" else "use the file of the model itself"
        what = "a LoRA adapter" if kind == "adapter" else f"a file of the kind {kind!r}"
        meta.cursor.fail("general.type", what, "a whole model", advice)
    architecture = meta.text("general.architecture")
    if architecture != "starcoder":
        found = f"a model of the architecture {architecture!r}"
        expected = "'starcoder': StarCoder, StarCoderBase, SantaCoder and their fine-tunes"
        advice = "run it with llama.cpp, or use a model of this family"
        meta.cursor.fail("general.architecture", found, expected, advice)
    if not n_tensors:
        meta.cursor.fail("tensors", "a vocabulary without weights", "a whole model", "use another")


# ------------------------------------------------------------------------------------------------
# Configuration


def _config(meta: Meta, n_vocab: int) -> ModelConfig:
    # A key of ours; llama.cpp writes none and always takes the tanh form.
    key = "starcoder.activation_function"
    activation = meta.text(key, "gelu_pytorch_tanh")
    if activation not in ACTIVATION_NAMES:
        meta.cursor.fail(key, repr(activation), " or ".join(ACTIVATION_NAMES), "")
    return ModelConfig(
        architecture="gpt_bigcode",
        n_ctx=meta.integer("starcoder.context_length"),
        n_vocab=n_vocab,
        dim=meta.integer("starcoder.embedding_length"),
        hidden_dim=meta.integer("starcoder.feed_forward_length"),
        n_layers=meta.integer("starcoder.block_count"),
        n_heads=meta.integer("starcoder.attention.head_count"),
        n_kv_heads=meta.integer("starcoder.attention.head_count_kv", 1),
        norm_eps=_as_written(meta.number("starcoder.attention.layer_norm_epsilon")),
        activation=ACTIVATION_NAMES[activation],
        name=shown(meta.text("general.name", "", "replace")),
        source=meta.cursor.name,
    )


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
