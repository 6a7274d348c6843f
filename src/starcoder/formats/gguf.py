"""GGUF, versions 2 and 3, little-endian: the format of llama.cpp. Reading only.

`_gguf_header` knows the bytes of the header; this module knows what its keys mean. Tensors stay in
the mapped file.
"""

from __future__ import annotations

from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starcoder.checkpoint import Checkpoint
from starcoder.config import ACTIVATION_NAMES, ModelConfig
from starcoder.formats._byte_level import MAX_TOKEN_LEN, SPECIAL_NAMES, merge_ids, token_bytes
from starcoder.formats._bytes import Cursor, map_file, settle, shown
from starcoder.formats._gguf_header import MAGIC, Info, Meta, read_header
from starcoder.tensor import Tensor, TensorType
from starcoder.vocab import Vocab

__all__ = ["MAGIC", "read"]

# `tokenizer.ggml.pre` names how text is split before merging: whether digits come apart first.
_PRE_TOKENIZERS = {"refact": True, "starcoder": True, "gpt-2": False}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_MARKED = (_UNKNOWN, _CONTROL, _USER_DEFINED)  # written as plain text, not byte-level

_TYPES = {kind.value: kind for kind in TensorType}


def read(path: Path) -> Checkpoint:
    """The model in a GGUF file of architecture `starcoder`.

    Raises:
        FormatError: anything in the file that is not as it should be.
    """
    cursor = Cursor(str(path), map_file(path))
    version, meta, infos = read_header(cursor)
    architecture = meta.text("general.architecture")
    if architecture != "starcoder":
        cursor.fail(
            "general.architecture", repr(architecture), "'starcoder'", "use a GPTBigCode model"
        )
    vocab = _vocab(meta)
    config = _config(meta, len(vocab.tokens))
    tensors = settle(_tensors(cursor, meta, infos), cursor.name)
    return Checkpoint(config, vocab, tensors, f"GGUF v{version}", cursor.name)


# ------------------------------------------------------------------------------------------------
# Vocabulary and configuration


def _vocab(meta: Meta) -> Vocab:
    cursor = meta.cursor
    model = meta.text("tokenizer.ggml.model")
    if model != "gpt2":
        cursor.fail("tokenizer.ggml.model", repr(model), "'gpt2'", "use a StarCoder vocabulary")
    pre = meta.text("tokenizer.ggml.pre", "refact")
    if pre not in _PRE_TOKENIZERS:
        expected = " or ".join(map(repr, _PRE_TOKENIZERS))
        cursor.fail("tokenizer.ggml.pre", f"unsupported pre-tokenizer {pre!r}", expected, "")
    texts = meta.strings("tokenizer.ggml.tokens")
    tokens, special_ids = _tokens(meta, texts)
    return Vocab(
        tokens=tuple(tokens),
        merges=_merges(meta, texts),
        special_ids=special_ids,
        eos_id=_token_id(meta, "eos", len(texts)),
        bos_id=_token_id(meta, "bos", len(texts)),
        split_digits=_PRE_TOKENIZERS[pre],
    )


def _tokens(meta: Meta, texts: list[str]) -> tuple[list[bytes], frozenset[int]]:
    """The bytes of every token, and which are special. Padding, "[PAD49153]", becomes b""."""
    cursor, key = meta.cursor, "tokenizer.ggml.tokens"
    if not texts or max(map(len, texts)) > MAX_TOKEN_LEN:
        cursor.fail(key, "no token, or one too long", f"tokens of 1 to {MAX_TOKEN_LEN} bytes")
    kinds = _kinds(meta, texts)
    padding = {i for i, text in enumerate(texts) if text[:4] == "[PAD" and text == f"[PAD{i}]"}
    padding.update(np.flatnonzero(kinds == _UNUSED).tolist())
    marked = set(np.flatnonzero(np.isin(kinds, _MARKED)).tolist()) - padding
    byte_level = list(texts)
    for i in padding | marked:
        byte_level[i] = ""
    tokens = token_bytes(byte_level, f"{cursor.name}: {key}")
    for i in marked:
        tokens[i] = texts[i].encode()
    return tokens, frozenset(i for i in marked if tokens[i])


def _kinds(meta: Meta, texts: list[str]) -> NDArray[np.int32]:
    """The type of every token. Old files mark no special tokens; these go by their names."""
    key = "tokenizer.ggml.token_type"
    kinds = np.full(len(texts), _NORMAL, np.int32)
    if key in meta.values:
        kinds = meta.int32s(key, len(texts)).copy()
        if kinds.min() < _NORMAL or kinds.max() > _UNUSED:
            meta.cursor.fail(key, f"{kinds.min()} to {kinds.max()}", f"{_NORMAL} to {_UNUSED}")
    if not np.isin(kinds, _MARKED).any():
        kinds[[i for i, text in enumerate(texts) if text.encode() in SPECIAL_NAMES]] = _CONTROL
    return kinds


def _merges(meta: Meta, texts: list[str]) -> NDArray[np.int32]:
    cursor, key = meta.cursor, "tokenizer.ggml.merges"
    merges = meta.strings(key)
    if set(map(str.count, merges, repeat(" "))) - {1}:
        cursor.fail(key, "a merge that is not two texts", "two texts and one space")
    parts = " ".join(merges).split(" ") if merges else []
    ids = dict(zip(reversed(texts), range(len(texts) - 1, -1, -1), strict=True))  # first id wins
    return merge_ids(parts[::2], parts[1::2], ids, f"{cursor.name}: {key}")


def _token_id(meta: Meta, name: str, n_vocab: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in meta.values:
        return None
    token_id = meta.integer(key)
    if not 0 <= token_id < n_vocab:
        meta.cursor.fail(key, str(token_id), f"an id from 0 to {n_vocab - 1}")
    return token_id


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
        norm_eps=_short(meta.number("starcoder.attention.layer_norm_epsilon")),
        activation=ACTIVATION_NAMES[activation],
        name=shown(meta.text("general.name", "")),
        source=meta.cursor.name,
    )


def _short(number: float) -> float:
    """A number that was written as a 32-bit float: 9.999999747e-06 is meant as 1e-5."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(number)))


# ------------------------------------------------------------------------------------------------
# Tensors


def _tensors(cursor: Cursor, meta: Meta, infos: list[Info]) -> dict[str, Tensor]:
    """Views of the mapped file, after a check that each lies in it and none on another."""
    alignment = _alignment(meta)
    start = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    end, before = 0, "none"
    for info in sorted(infos, key=lambda info: info.offset):
        if info.name in tensors:
            cursor.fail(f"tensor {info.name}", "the same name twice", "one of each")
        kind = _tensor_type(cursor, info)
        if info.offset % alignment or info.offset < end:
            expected = f"a multiple of {alignment} from {end} on, after tensor {before}"
            cursor.fail(f"tensor {info.name}", f"offset {info.offset}", expected)
        cursor.pos = min(start + info.offset, len(cursor.data))
        data = cursor.view(kind.nbytes(info.shape), f"tensor {info.name}")
        tensors[info.name] = Tensor(kind, info.shape, data)
        end, before = info.offset + data.nbytes, info.name
    _check_quantization(meta, tensors)
    return tensors


def _alignment(meta: Meta) -> int:
    key = "general.alignment"
    alignment = meta.integer(key, 32)
    if alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
        meta.cursor.fail(key, str(alignment), "a power of two from 8 to 4096")
    return alignment


def _tensor_type(cursor: Cursor, info: Info) -> TensorType:
    what = f"tensor {info.name}"
    kind = _TYPES.get(info.type)
    if kind is None:
        known = " ".join(TensorType.__members__)
        cursor.fail(what, f"type {info.type}", known, "quantize it to one of these types")
    if min(info.shape) < 1:
        cursor.fail(what, f"shape {info.shape}", "at least 1 in each dimension")
    if info.shape[-1] % kind.block_len:
        expected = f"a multiple of {kind.block_len} for {kind.name}"
        cursor.fail(what, f"rows of {info.shape[-1]} weights", expected)
    return kind


def _check_quantization(meta: Meta, tensors: dict[str, Tensor]) -> None:
    key = "general.quantization_version"
    version = meta.integer(key, 2)
    if version != 2 and any(t.type.block_len > 1 for t in tensors.values()):
        meta.cursor.fail(key, str(version), "2", "quantize the original weights again")
