"""Legacy ggml `.bin` files: what ggml's own StarCoder example wrote. Reading only.

    u32 magic  i32 n_vocab n_ctx dim n_heads n_layers ftype
    i32 n_vocab  n_vocab x { i32 length, bytes }
    until the end: i32 n_dims, name_len, type; i32 dims[n_dims], innermost first; name; data

Nothing is aligned. The key and value rows of multi-query attention are repeated for every head;
they are checked to be equal and folded to one. The files hold no merges and mark no special
tokens: merges are recovered in `merges`, special tokens go by their names.

`ftype` has the version of quantization in its thousands. Version 2 is today's. Version 1 has the
scales of q4_0, q4_1 and q8_0 in 32 bits, which are rounded to 16 here: exact where the scale is a
16-bit number, to nearest otherwise. Version 0 orders the weights of a block differently and is
refused, for nothing in a file tells apart the layouts that went by that number.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from starcoder.core.tensor import JoinedTensor, Tensor, TensorType
from starcoder.formats.byte_level import (
    MAX_TOKEN_LEN,
    MAX_TOKENS,
    MAX_VOCAB_BYTES,
    SPECIAL_NAMES,
    joins_digits,
)
from starcoder.formats.ggml.strangers import refuse_gpt2, refuse_stranger
from starcoder.formats.io.mapped import Cursor, map_file
from starcoder.formats.io.reject import DAMAGED
from starcoder.formats.merges import recover_merges
from starcoder.model.architecture import Role, TensorSpec
from starcoder.model.checkpoint import Checkpoint, Format, settle
from starcoder.model.config import ModelConfig
from starcoder.model.models import ARCHITECTURES
from starcoder.model.vocab import Vocab

__all__ = ["MAGIC", "PREFIX", "read", "vocab_of"]

MAGIC = b"lmgg"  # 0x67676d6c, little-endian
PREFIX = "model/"  # of all names of tensors

_HEADER, _I32, _3I32 = struct.Struct("<6i"), struct.Struct("<i"), struct.Struct("<3i")
_MAX_NAME_LEN, _MAX_DIMS = 64, 2

_VERSION_FACTOR, _VERSIONS = 1000, (0, 1, 2)
_TYPES = {kind.value: kind for kind in TensorType if kind.ggml_file is not None}
_FTYPES = tuple(sorted(k.ggml_file for k in TensorType if k.ggml_file is not None))
_K_QUANTS = range(10, 15)  # came after version 2
_F32_SCALES = {TensorType.Q4_0: 1, TensorType.Q4_1: 2, TensorType.Q8_0: 1}  # in a version 1 block
_UNQUANTIZED = (TensorType.F32, TensorType.F16)


def read(path: Path) -> Checkpoint:
    """The model in a legacy ggml file.

    Raises:
        FormatError: anything in the file that is not as it should be.
    """
    cursor = Cursor(str(path), map_file(path))
    cursor.skip(len(MAGIC), "magic")
    if not _is_ours(cursor):
        refuse_stranger(cursor)
    architecture = next(one for one in ARCHITECTURES.values() if one.has_legacy)
    n_vocab, n_ctx, dim, n_heads, n_layers, ftype = cursor.unpack(_HEADER, "header")
    # Checks the numbers, for what follows; heads and widths are known when the tensors are.
    shape = ModelConfig(
        architecture=architecture.name,
        n_ctx=n_ctx,
        n_vocab=n_vocab,
        dim=dim,
        hidden_dim=4 * dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        source=cursor.name,
    )
    version = _version(cursor, ftype)
    tokens = _tokens(cursor, n_vocab)
    refuse_gpt2(cursor, tokens)
    specs = architecture.specs(n_layers)
    tensors = _read_tensors(cursor, specs, architecture.title, version)
    tensors = settle(tensors, architecture, cursor.name)
    tensors, n_kv_heads = _fold(cursor, shape, specs, tensors)
    hidden_dim = next(tensors[n].shape[0] for n, s in specs.items() if s.axes[0] == "hidden_dim")
    config = replace(shape, hidden_dim=hidden_dim, n_kv_heads=n_kv_heads)
    label = f"ggml, quantization version {version}"
    return Checkpoint(config, vocab_of(tokens), tensors, Format.GGML, label, cursor.name)


def _is_ours(cursor: Cursor) -> bool:
    """Whether the size of the vocabulary stands where it does in our files, twice."""
    first, second = len(MAGIC), len(MAGIC) + _HEADER.size
    return cursor.data[first : first + 4] == cursor.data[second : second + 4]


def _version(cursor: Cursor, ftype: int) -> int:
    version, kind = divmod(ftype, _VERSION_FACTOR)
    if version not in _VERSIONS or kind not in _FTYPES:
        expected = f"a type in {_FTYPES} and 1000 times the quantization version, 0 to 2"
        cursor.fail("ftype", str(ftype), expected)
    return version


# ------------------------------------------------------------------------------------------------
# Vocabulary


def _tokens(cursor: Cursor, n_vocab: int) -> list[bytes]:
    """The bytes of every id. The last token fills the vocabulary up; its copies become b""."""
    (count,) = cursor.unpack(_I32, "vocabulary")
    most = min(MAX_TOKENS, cursor.left // 4)
    if count != n_vocab or count > most:
        cursor.fail(
            "vocabulary", f"{count} tokens", f"{n_vocab}, as in the header, and <= {most}", DAMAGED
        )
    tokens, limit = [], cursor.pos + 4 * count + MAX_VOCAB_BYTES
    for i in range(count):
        (length,) = cursor.unpack(_I32, "vocabulary")
        if not 0 <= length <= MAX_TOKEN_LEN:
            cursor.fail(f"token {i}", f"{length} bytes", f"0 to {MAX_TOKEN_LEN}", DAMAGED)
        tokens.append(cursor.take(length, MAX_TOKEN_LEN, "vocabulary"))
        if cursor.pos > limit:
            expected = f"at most {MAX_VOCAB_BYTES} in all"
            cursor.fail("vocabulary", "more bytes than a vocabulary has", expected)
    first = count - 1
    while first and tokens[first - 1] == tokens[-1]:
        first -= 1
    return tokens[: first + 1] + [b""] * (count - first - 1)


def vocab_of(tokens: Sequence[bytes]) -> Vocab:
    """The vocabulary that a file with these tokens means.

    Raises:
        FormatError: tokens that no byte-level BPE has.
    """
    special_ids = frozenset(i for i, text in enumerate(tokens) if text in SPECIAL_NAMES)
    # SantaCoder's end of text is 49152, StarCoder's 0. The format names no other token.
    end = next((i for i in sorted(special_ids) if tokens[i] == b"<|endoftext|>"), 0)
    merges = recover_merges(tokens, special_ids)
    splits = not joins_digits(tokens, special_ids)
    return Vocab(tuple(tokens), merges, special_ids, end, end, split_digits=splits)


# ------------------------------------------------------------------------------------------------
# Tensors


def _read_tensors(
    cursor: Cursor, specs: Mapping[str, TensorSpec], title: str, version: int
) -> dict[str, Tensor]:
    """Every tensor by its canonical name, each once, to the end of the file."""
    names = {PREFIX + spec.legacy: name for name, spec in specs.items()}
    tensors: dict[str, Tensor] = {}
    while cursor.left:
        n_dims, name_len, number = cursor.unpack(_3I32, "tensor header")
        if not 1 <= n_dims <= _MAX_DIMS or not 1 <= name_len <= _MAX_NAME_LEN:
            found = f"{n_dims} dimensions and a name of {name_len} bytes"
            cursor.fail(
                "tensor header", found, f"1 to {_MAX_DIMS} and 1 to {_MAX_NAME_LEN}", DAMAGED
            )
        dims = [cursor.unpack(_I32, "tensor header")[0] for _ in range(n_dims)]
        name = cursor.text(name_len, _MAX_NAME_LEN, "tensor name")
        if name not in names or names[name] in tensors:
            cursor.fail("tensor name", repr(name), f"the name of a {title} tensor, each once")
        shape = tuple(reversed(dims))
        tensors[names[name]] = _read_tensor(cursor, f"tensor {name}", shape, number, version)
    needed = {name for name, spec in specs.items() if spec.role is not Role.OUTPUT}
    missing = needed - set(tensors)
    if missing:
        cursor.fail("tensors", f"no {min(missing)}", f"{len(needed)} tensors", DAMAGED)
    return tensors


def _read_tensor(
    cursor: Cursor, what: str, shape: tuple[int, ...], number: int, version: int
) -> Tensor:
    kind = _TYPES.get(number)
    if kind is None or (number in _K_QUANTS and version < 2):
        cursor.fail(what, f"type {number}", " ".join(kind.name for kind in _TYPES.values()))
    if version == 0 and kind not in _UNQUANTIZED:
        advice = "convert the original weights again; its blocks cannot be read safely"
        cursor.fail(what, f"{kind.name} of quantization version 0", "version 1 or 2", advice)
    if min(shape) < 1 or shape[-1] % kind.block_len:
        cursor.fail(what, f"shape {shape}", f"whole blocks of {kind.block_len} weights", DAMAGED)
    n_scales = _F32_SCALES.get(kind, 0) if version == 1 else 0
    n_blocks = math.prod(shape) // kind.block_len
    data = cursor.view(n_blocks * (kind.block_bytes + 2 * n_scales), what)
    if n_scales:
        data = _shorten_scales(cursor, what, data.reshape(n_blocks, -1), n_scales)
    return Tensor(kind, shape, data)


def _shorten_scales(
    cursor: Cursor, what: str, blocks: NDArray[np.uint8], n_scales: int
) -> NDArray[np.uint8]:
    """Blocks that start with `n_scales` f32 numbers, with f16 in their place."""
    scales = np.ascontiguousarray(blocks[:, : 4 * n_scales]).view("<f4")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        short = scales.astype("<f2")
    if not np.isfinite(short).all():
        worst = scales[~np.isfinite(short)][0]
        cursor.fail(what, f"a scale of {worst}", "at most 65504 in size, the limit of 16 bits")
    shortened = np.empty((len(blocks), blocks.shape[1] - 2 * n_scales), np.uint8)
    shortened[:, : 2 * n_scales] = short.view(np.uint8)
    shortened[:, 2 * n_scales :] = blocks[:, 4 * n_scales :]
    return shortened.reshape(-1)


def _fold(
    cursor: Cursor,
    shape: ModelConfig,
    specs: Mapping[str, TensorSpec],
    tensors: dict[str, Tensor],
) -> tuple[dict[str, Tensor], int]:
    """With one key and one value head if all copies are equal; and the number of these heads."""
    n = shape.n_heads  # of keys and values too, before folding
    wanted = {name: s.shape(shape) for name, s in specs.items() if s.axes[0] == "qkv_dim"}
    heads = {}
    for name, expected in wanted.items():
        if tensors[name].shape != expected:
            cursor.fail(
                f"tensor {name}", f"shape {tensors[name].shape}", f"shape {expected}", DAMAGED
            )
        heads[name] = tensors[name].data.reshape(3 * n, -1)  # the bytes of each head's rows
    if not all(_is_repeated(tensors[name], rows, n) for name, rows in heads.items()):
        return tensors, n
    return tensors | {name: _fold_tensor(tensors[name], n) for name in heads}, 1


def _is_repeated(tensor: Tensor, rows: NDArray[np.uint8], n_heads: int) -> bool:
    """Whether all key heads are equal and all value heads; `rows` is (3 * n_heads, bytes)."""
    repeated = _all_equal(rows[n_heads : 2 * n_heads]) and _all_equal(rows[2 * n_heads :])
    tensor.release()  # these are most of the bytes of the file, looked at once
    return repeated


def _all_equal(rows: NDArray[np.uint8]) -> bool:
    return all(np.array_equal(rows[0], row) for row in rows[1:])


def _fold_tensor(tensor: Tensor, n_heads: int) -> Tensor:
    """Queries, first key head, first value head, as they lie in the file."""
    head_dim = tensor.shape[0] // (3 * n_heads)
    spans = (0, (n_heads + 1) * head_dim), (2 * n_heads * head_dim, (2 * n_heads + 1) * head_dim)
    return JoinedTensor(*(tensor.rows(first, last) for first, last in spans))
