"""Legacy ggml `.bin` files, written: byte for byte what ggml's own converter and quantizer made.

The format has multi-head attention only, so the key head and the value head of a multi-query model
are repeated for every query head. It has one type for all matrices, tanh GELU, an epsilon of 1e-5,
and a feed-forward part four times as wide as the model; what differs is refused. So is a vocabulary
with more than the format can say, unless its loss is asked for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starcoder.core.tensor import TensorType, Weights
from starcoder.errors import FormatError, WriteError
from starcoder.formats.ggml.losses import legacy_losses
from starcoder.formats.ggml.reader import MAGIC, PREFIX
from starcoder.formats.io.atomic import Piece, write_file
from starcoder.model import models
from starcoder.model.architecture import TensorSpec
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.config import ModelConfig
from starcoder.model.vocab import Vocab

__all__ = ["write"]

_QUANTIZED = 2000  # 1000 times the version of quantization
_ADVICE = "write a GGUF file instead"
_RETYPE = "say which type, like q4_0, or write a GGUF file instead"


def write(
    path: Path,
    checkpoint: Checkpoint,
    weights: Mapping[str, Weights],
    *,
    force: bool = False,
    on_start: Callable[[int], None] | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> int:
    """Write the model with these weights; returns the bytes of the file.

    `on_start` is told how many bytes the file will have, `on_bytes` how many were made. With
    `force` what the format cannot say of the vocabulary is lost.

    Raises:
        WriteError: the file cannot be written, or the format cannot hold this model.
    """
    config = checkpoint.config
    specs = _legacy_specs(path, checkpoint)
    kind = _check(path, config, specs, weights)
    _check_vocab(path, checkpoint.vocab, force=force)
    header = _header(config, checkpoint.vocab, kind)
    items = [
        (spec.legacy, *_tiled(config, spec, weights[name]))
        for name, spec in specs.items()
        if name in weights
    ]
    heads = [_tensor_header(PREFIX + name, kind, shape) for name, kind, shape, _ in items]
    nbytes = len(header) + sum(map(len, heads))
    nbytes += sum(kind.nbytes(shape) for _, kind, shape, _ in items)
    if on_start is not None:
        on_start(nbytes)

    def pieces() -> Iterator[Piece]:
        yield header
        for head, (*_, data) in zip(heads, items, strict=True):
            yield head
            yield from data

    write_file(path, nbytes, pieces(), on_bytes)
    return nbytes


def _legacy_specs(path: Path, checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """What is declared of each tensor, of an architecture that the format knows."""
    architecture = models.find(checkpoint)
    if not architecture.has_legacy:
        known = (one.title for one in models.ARCHITECTURES.values() if one.has_legacy)
        expected = f"a {' or '.join(known)} model in a legacy file"
        raise WriteError(f"{path}: architecture", architecture.title, expected, _ADVICE)
    return architecture.specs(checkpoint.config.n_layers)


def _check(
    path: Path,
    config: ModelConfig,
    specs: Mapping[str, TensorSpec],
    weights: Mapping[str, Weights],
) -> TensorType:
    """The one type of all matrices, once it is known that the format can hold the model."""
    facts: list[tuple[str, object, tuple[object, ...]]] = [
        ("activation", config.activation, ("gelu_tanh",)),
        ("norm_eps", config.norm_eps, (1e-5,)),
        ("hidden_dim", config.hidden_dim, (4 * config.dim,)),
        ("n_kv_heads", config.n_kv_heads, (1, config.n_heads)),
    ]
    for what, found, accepted in facts:
        if found not in accepted:
            expected = " or ".join(map(str, accepted)) + " in a legacy file"
            raise WriteError(f"{path}: {what}", str(found), expected, _ADVICE)
    kinds = {w.type for name, w in weights.items() if specs[name].role.is_matrix}
    if len(kinds) != 1 or any(kind.ggml_file is None for kind in kinds):
        found = " and ".join(sorted(kind.name for kind in kinds))
        raise WriteError(f"{path}: types", found, "one type of ggml's for all matrices", _RETYPE)
    for name, w in weights.items():
        if not specs[name].role.is_matrix and w.type is not TensorType.F32:
            where = f"{path}: tensor {name}"
            raise WriteError(where, w.type.name, "F32 in a legacy file", _RETYPE)
    return kinds.pop()


def _check_vocab(path: Path, vocab: Vocab, *, force: bool) -> None:
    try:
        lost = legacy_losses(vocab).grave
    except FormatError as error:
        found, expected = error.found, "a vocabulary that can be read back"
        raise WriteError(f"{path}: vocabulary", found, expected, _ADVICE) from None
    if lost and not force:
        advice = f"{_ADVICE}, or give --force to lose this"
        raise WriteError(str(path), "; ".join(lost), "a vocabulary that it can hold", advice)


def _header(config: ModelConfig, vocab: Vocab, kind: TensorType) -> bytes:
    assert kind.ggml_file is not None  # `_check` let it through
    ftype = kind.ggml_file + (_QUANTIZED if kind.block_len > 1 else 0)
    numbers = (config.n_ctx, config.dim, config.n_heads, config.n_layers, ftype, config.n_vocab)
    parts = [MAGIC, struct.pack("<7i", config.n_vocab, *numbers)]
    last = next((i for i in reversed(range(config.n_vocab)) if vocab.tokens[i]), 0)
    for i, raw in enumerate(vocab.tokens):
        text = raw if i <= last else vocab.tokens[last]  # padding repeats the last token
        parts.append(struct.pack("<i", len(text)) + text)
    return b"".join(parts)


def _tensor_header(name: str, kind: TensorType, shape: tuple[int, ...]) -> bytes:
    old = name.encode()
    dims = struct.pack(f"<{len(shape)}i", *reversed(shape))
    return struct.pack("<3i", len(shape), len(old), int(kind)) + dims + old


def _tiled(
    config: ModelConfig, spec: TensorSpec, w: Weights
) -> tuple[TensorType, tuple[int, ...], Iterator[NDArray[np.uint8]]]:
    """Type, shape and bytes of a tensor, with key and value heads for every query head."""
    if spec.axes[0] != "qkv_dim" or config.n_kv_heads == config.n_heads:
        return w.type, w.shape, w.pieces()
    row_bytes = w.type.nbytes(w.shape) // w.shape[0]
    head_bytes = config.head_dim * row_bytes
    pieces = _repeat_heads(w.pieces(), config.dim * row_bytes, head_bytes, config.n_heads)
    return w.type, (3 * config.dim, *w.shape[1:]), pieces


def _repeat_heads(
    pieces: Iterator[NDArray[np.uint8]], query_bytes: int, head_bytes: int, n_heads: int
) -> Iterator[NDArray[np.uint8]]:
    """The queries as they come, then the key head and the value head so many times each."""
    rest = []
    left = query_bytes
    for piece in pieces:
        if left:
            yield piece[:left]
        rest.append(piece[left:])
        left = max(0, left - len(piece))
    heads = np.concatenate(rest)
    for head in (heads[:head_bytes], heads[head_bytes:]):
        for _ in range(n_heads):
            yield head
