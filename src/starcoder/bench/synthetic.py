"""A model of a known shape with random weights, for measuring where there is no file.

Its types are those that `starcoder quantize` gives a file, so that the same bytes are read. Layers
share their weights, and every tensor repeats some thousand blocks: StarCoder's 15 billion weights
take 0.6 GB until they are packed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from starcoder.convert import quantize
from starcoder.convert.mix import Mix
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import InputError
from starcoder.model import models
from starcoder.model.architecture import Role
from starcoder.model.checkpoint import Checkpoint, Format
from starcoder.model.config import ModelConfig
from starcoder.model.gpt_bigcode import GPT_BIGCODE
from starcoder.model.vocab import Vocab

__all__ = ["SHAPES", "checkpoint", "config_of"]

SHAPES = {  # dim, heads, layers, positions
    "tiny_starcoder_py": (768, 12, 20, 8192),
    "santacoder": (2048, 16, 24, 2048),
    "starcoderbase-1b": (2048, 16, 24, 8192),
    "starcoderbase-3b": (2816, 22, 36, 8192),
    "starcoderbase-7b": (4096, 32, 42, 8192),
    "starcoder": (6144, 48, 40, 8192),
}
_N_VOCAB = 49152
_SCALE = 0.02  # standard deviation of the weights, as the models were initialized
_TILE = 257, 256  # rows, columns that are repeated: a prime number of rows, so that few line up


def config_of(shape: str) -> ModelConfig:
    """The configuration of a model of the family.

    Raises:
        InputError: none of that name.
    """
    if shape not in SHAPES:
        raise InputError("--shape", repr(shape[:40]), " ".join(SHAPES))
    dim, n_heads, n_layers, n_ctx = SHAPES[shape]
    return ModelConfig(
        architecture=GPT_BIGCODE.name,
        n_ctx=n_ctx,
        n_vocab=_N_VOCAB,
        dim=dim,
        hidden_dim=4 * dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=1,
        name=shape,
    )


def checkpoint(config: ModelConfig, mix: Mix) -> Checkpoint:
    """A model of this configuration in the types of `mix`; its output matrix is the embedding."""
    declared = models.ARCHITECTURES[config.architecture].specs(config.n_layers).values()
    specs = [spec for spec in declared if spec.role is not Role.OUTPUT]
    vocab = _vocab(config.n_vocab)
    hollow = {spec.name: _hollow(spec.shape(config)) for spec in specs}
    types, _ = quantize.plan(Checkpoint(config, vocab, hollow), quantize.Choice(mix=mix))
    rng = np.random.default_rng(0)
    made: dict[tuple[object, ...], Tensor] = {}
    tensors = {}
    for spec in specs:
        kind, shape = types[spec.name], spec.shape(config)
        key = (spec.role is Role.NORM, kind, shape)
        if key not in made:
            made[key] = _ones(shape) if key[0] else _random(kind, shape, rng)
        tensors[spec.name] = made[key]
    return Checkpoint(
        config, vocab, tensors, Format.RANDOM, "random weights", f"{config.name} {mix.name}"
    )


def _hollow(shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor without memory."""
    nbytes = TensorType.F32.nbytes(shape)
    return Tensor(TensorType.F32, shape, np.broadcast_to(np.uint8(0), (nbytes,)))


def _ones(shape: tuple[int, ...]) -> Tensor:
    return Tensor(TensorType.F32, shape, np.ones(shape, np.float32).view(np.uint8))


def _random(kind: TensorType, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    floats = rng.normal(0, _SCALE, _TILE).astype(np.float32)
    return Tensor(kind, shape, _repeat(ops.quantize(floats, kind).data, kind.nbytes(shape)))


def _repeat(tile: NDArray[np.uint8], nbytes: int) -> NDArray[np.uint8]:
    """The tile again and again; it is cut where a block ends, since both are whole blocks."""
    return np.tile(tile, math.ceil(nbytes / len(tile)))[:nbytes]


def _vocab(n_vocab: int) -> Vocab:
    """An end token, all bytes, and pairs of them: what other programs accept as a vocabulary."""
    n_merges = max(0, n_vocab - 257)
    pairs = np.array(list(np.ndindex(256, 256))[:n_merges], np.int32).reshape(-1, 2)
    words = [b"<|endoftext|>", *(bytes([i]) for i in range(256)), *map(bytes, pairs.tolist())]
    return Vocab(tuple(words[:n_vocab]), pairs + 1, frozenset({0}), eos_id=0, bos_id=0)
