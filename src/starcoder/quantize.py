"""Quantizing: a checkpoint's tensors in other types, computed while they are written.

A few rows at a time are read, made float32, encoded and handed on, so a model of any size takes
some MB of memory. The kernels use all threads; the file writer has its own. The same input gives
the same bytes whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from starcoder import machine, ops
from starcoder import mix as mixes
from starcoder.checkpoint import Checkpoint
from starcoder.config import ModelConfig
from starcoder.errors import FormatError, InputError
from starcoder.mix import Mix
from starcoder.tensor import Tensor, TensorType, Weights

__all__ = [
    "Choice",
    "Quantized",
    "check_finite",
    "plan",
    "quantize",
    "tensor_shapes",
    "use_threads",
]

_PIECE_WEIGHTS = 1 << 20  # encoded at once
_F16_MAX = 65504.0
_POSITIONS = "position_embd.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user wants: a mix, and exceptions from it."""

    mix: Mix | None = None  # None: every tensor keeps its type
    output_type: TensorType | None = None
    embedding_type: TensorType | None = None
    patterns: Sequence[tuple[str, TensorType]] = field(default=())
    legacy: bool = False  # one type for all matrices


@dataclass(frozen=True, slots=True)
class Quantized:
    """A tensor in another type; its bytes are computed as they are asked for."""

    source: Tensor
    type: TensorType
    where: str  # file and tensor, for messages
    fused: bool = False  # rounded as ggml's program rounds legacy files: see `ops.quantize`

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the source: (rows, columns)."""
        return self.source.shape

    def pieces(self) -> Iterator[NDArray[np.uint8]]:
        """All bytes in order, some rows at a time.

        Raises:
            FormatError: a weight that is not finite, or a file that changed meanwhile.
        """
        for first, rows in _row_pieces(self.source):
            _check_rows(rows, first, self.where)
            encoded = ops.requantize(rows, self.type, fused=self.fused)
            if _may_overflow(rows) and ops.first_non_finite(encoded) is not None:
                raise FormatError(self.where, "a weight too large", f"what {self.type.name} holds")
            yield encoded.data
            rows.release()
        self.source.finish()


def quantize(
    checkpoint: Checkpoint, types: Mapping[str, TensorType], *, legacy: bool = False
) -> dict[str, Weights]:
    """The checkpoint's tensors in these types, to be written; what has its type is copied.

    With `legacy` the bytes are those that ggml's own program writes in its `.bin` files; without,
    llama.cpp's in GGUF files. They differ in about one code in a million.
    """
    weights: dict[str, Weights] = {}
    for name, tensor in checkpoint.tensors.items():
        kind = types[name]
        where = f"{checkpoint.source}: tensor {name}"
        weights[name] = (
            tensor if kind is tensor.type else Quantized(tensor, kind, where, fused=legacy)
        )
    return weights


def use_threads(n: int | None) -> None:
    """How many threads encode weights, if so many can run here; None: see `machine`."""
    ops.set_n_threads(machine.threads(n).n)


def check_finite(checkpoint: Checkpoint) -> Iterator[int]:
    """Reads every weight; yields bytes read, piece by piece.

    Raises:
        FormatError: a weight that is not finite; the message has its place. Or a file that changed.
    """
    for name, tensor in checkpoint.tensors.items():
        where = f"{checkpoint.source}: tensor {name}"
        matrix = Tensor(
            tensor.type, (tensor.nbytes // _row_bytes(tensor), tensor.shape[-1]), tensor.data
        )
        for first, rows in _row_pieces(matrix):
            _check_rows(rows, first, where)
            rows.release()
            yield rows.nbytes
        tensor.finish()


def _row_bytes(tensor: Tensor) -> int:
    return tensor.type.nbytes(tensor.shape[-1:])


def _row_pieces(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The number of the first row, and some rows; the next ones are already asked for."""
    n_rows, n_cols = tensor.shape
    step = max(1, _PIECE_WEIGHTS // n_cols)
    for first in range(0, n_rows, step):
        if first + step < n_rows:
            tensor.rows(first + step, first + 2 * step).prefetch()
        yield first, tensor.rows(first, first + step)


def _check_rows(rows: Tensor, first_row: int, where: str) -> None:
    place = ops.first_non_finite(rows)
    if place is not None:
        row, column = divmod(place, rows.shape[1])
        value = ops.dequantize(rows.rows(row, row + 1))[0, column]
        found = f"{value} in row {first_row + row}, column {column}"
        raise FormatError(where, found, "finite weights", "the weights are damaged at their source")


def _may_overflow(rows: Tensor) -> bool:
    """Whether a scale, or a weight, may be beyond f16; a look at the encoded bytes costs more."""
    if rows.type is TensorType.F16:
        return False
    if rows.type is not TensorType.F32:
        return True
    x = rows.data.view(np.float32)
    return bool(max(x.max(), -x.min()) > _F16_MAX)


# ------------------------------------------------------------------------------------------------
# Which type each tensor gets


def plan(checkpoint: Checkpoint, choice: Choice) -> tuple[dict[str, TensorType], list[str]]:
    """The type of every tensor, and what the user should know about it.

    Raises:
        FormatError: tensors that are not those of the configuration.
        InputError: exceptions that a legacy file cannot hold, or that apply to no tensor.
    """
    _check_tensors(checkpoint)
    matrices = {n: t for n, t in checkpoint.tensors.items() if _is_matrix(n)}
    wanted = _wanted_legacy(choice) if choice.legacy else None
    notes: list[str] = []
    types = {name: tensor.type for name, tensor in checkpoint.tensors.items()}
    for name, tensor in matrices.items():
        kind = _wanted(choice, checkpoint, name) if wanted is None else wanted
        kind = tensor.type if kind is None else kind
        types[name] = mixes.fit(kind, tensor.shape[1])
        if types[name] is not kind and not choice.legacy:
            notes.append(_note_fallback(name, tensor, kind, types[name]))
    if (kind := _wanted_for_positions(choice)) is not None:
        types[_POSITIONS] = kind
    if choice.legacy and wanted is not None:
        types |= dict.fromkeys(matrices, _one_type(wanted, matrices, notes))
    return types, notes + _note_loss(checkpoint, types)


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and "norm" not in name and name != _POSITIONS


def _wanted_for_positions(choice: Choice) -> TensorType | None:
    """The float type that a pattern gives the position embeddings; readers know no other there."""
    kind = mixes.match(choice.patterns, _POSITIONS)
    return kind if kind is not None and kind.block_len == 1 else None


def _wanted(choice: Choice, checkpoint: Checkpoint, name: str) -> TensorType | None:
    tied = "output.weight" not in checkpoint.tensors
    named = {"output.weight": choice.output_type, "token_embd.weight": choice.embedding_type}
    if tied and choice.output_type is not None:
        named["token_embd.weight"] = choice.output_type
    special = named.get(name)
    if special is None:
        special = mixes.match(choice.patterns, name)
    if special is not None or choice.mix is None:
        return special
    return mixes.choose(choice.mix, checkpoint.config, name, tied=tied)


def _wanted_legacy(choice: Choice) -> TensorType | None:
    advice = "write a GGUF file instead"
    if choice.patterns or not choice.output_type is choice.embedding_type is None:
        raise InputError("types", "one of a tensor's own", "none in a legacy file", advice)
    if choice.mix is not None and choice.mix.is_mix:
        raise InputError(
            "type", choice.mix.name, f"{choice.mix.base.name.lower()} in a legacy file", advice
        )
    return choice.mix.base if choice.mix else None


def _one_type(wanted: TensorType, matrices: Mapping[str, Tensor], notes: list[str]) -> TensorType:
    """The first type that fits all matrices."""
    kind = wanted
    for tensor in matrices.values():
        kind = mixes.fit(kind, tensor.shape[1])
    if kind is not wanted:
        found = f"rows that are no whole blocks of {wanted.block_len}"
        notes.append(
            f"{found}: all matrices are {kind.name.lower()} instead of {wanted.name.lower()}"
        )
    return kind


def _note_fallback(name: str, tensor: Tensor, kind: TensorType, instead: TensorType) -> str:
    columns = f"{tensor.shape[1]} columns are no whole blocks of {kind.block_len}"
    return f"{name}: {columns}, so it is {instead.name.lower()} instead of {kind.name.lower()}"


def _note_loss(checkpoint: Checkpoint, types: Mapping[str, TensorType]) -> list[str]:
    """A warning where weights that were rounded once are rounded again."""
    changed = [t.type for name, t in checkpoint.tensors.items() if types[name] is not t.type]
    rounded = [kind for kind in changed if kind.block_len > 1]
    if not rounded:
        return []
    before = max(set(rounded), key=rounded.count).name.lower()
    lost = "what that lost is lost, and rounding again loses more than quantizing the original does"
    return [f"the weights were already rounded to {before}; {lost}"]


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Every tensor of the configuration, in its shape, and no other."""
    shapes = tensor_shapes(checkpoint.config)
    if "output.weight" in checkpoint.tensors:
        shapes["output.weight"] = shapes["token_embd.weight"]
    for name, shape in shapes.items():
        checkpoint.take(name, *shape)
    unknown = checkpoint.tensors.keys() - shapes.keys()
    if unknown:
        where = f"{checkpoint.source}: tensor {min(unknown)}"
        raise FormatError(where, "an unknown name", "a GPTBigCode tensor", "use another file")


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a model whose output matrix is its embedding."""
    dim, hidden = config.dim, config.hidden_dim
    n_qkv = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.n_vocab, dim)}
    shapes[_POSITIONS] = (config.n_ctx, dim)
    linears = {"attn_qkv": (n_qkv, dim), "attn_output": (dim, dim)}
    linears |= {"ffn_up": (hidden, dim), "ffn_down": (dim, hidden)}
    norms = ["output_norm"]
    for i in range(config.n_layers):
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
        for part, shape in linears.items():
            shapes |= {f"blk.{i}.{part}.weight": shape, f"blk.{i}.{part}.bias": shape[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
    return shapes
