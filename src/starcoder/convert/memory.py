"""The memory a model takes, added up before any of it is taken.

Linux gives out more memory than there is and ends a process that fills it. So what a model surely
needs is compared with the room that `machine` finds, and one that cannot fit is refused, with the
type or the context that would. What is only reserved (the cache of requests that may never come)
counts as addresses, not as memory. Nothing here allocates: the figures are of `ops` and `kv_cache`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from starcoder.convert import quantize
from starcoder.convert.mix import all_mixes
from starcoder.core import machine, ops
from starcoder.core.batch import BLOCK_LEN
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import MemoryLimitError, StarcoderError
from starcoder.model import models
from starcoder.model.architecture import Role, TensorSpec
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.kv_cache import RUN_LEN, cache_bytes

__all__ = ["Need", "Use", "check", "need_of", "shown"]

# Addresses for what comes after the model: the library that reads the vocabulary ends the process
# where it finds none.
_LIBRARIES = 64 << 20
_RUN = RUN_LEN * BLOCK_LEN  # positions: what a cache is rounded up to


@dataclass(frozen=True, slots=True)
class Use:
    """How a model will be used; and for messages, what its user can change."""

    n_positions: int  # in the cache at once, that must be possible
    n_reserved: int  # in the cache at most
    n_batch: int = 512  # most tokens in one step
    context_option: str = "choose it with -c or n_ctx"
    type_option: str = "starcoder quantize {source} OUT.gguf {type}"


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model takes, at least."""

    weights: int  # matrices, packed
    vectors: int  # norms, biases and position embeddings, which are copied from the file
    cache: int  # keys and values
    step: int  # what is computed in one step

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.vectors + self.cache + self.step


def need_of(
    checkpoint: Checkpoint, use: Use, types: Mapping[str, TensorType] | None = None
) -> Need:
    """What the model takes; with `types`, if its tensors had these.

    The pages of its file are not counted: they are page cache, and let go while it is packed.
    """
    config = checkpoint.config
    n_positions = min(use.n_positions, config.n_ctx)
    weights = vectors = 0
    for name, (spec, tensor) in _used(checkpoint).items():
        if spec.role.is_matrix:
            kind = tensor.type if types is None else types[name]
            weights += ops.packed_bytes(kind, tensor.shape)
        else:
            vectors += 4 * math.prod(tensor.shape)
    step = min(use.n_batch, n_positions) * _token_bytes(checkpoint) + 4 * config.n_vocab
    return Need(weights, vectors, cache_bytes(config, use.n_positions), step)


def check(checkpoint: Checkpoint, use: Use) -> int | None:
    """Lets through what may fit. Where the system says nothing, everything may.

    Returns:
        bytes of addresses that the model leaves to threads; None where there is no limit.

    Raises:
        MemoryLimitError: the model can never fit; the message has both figures, and what would.
    """
    need = need_of(checkpoint, use)
    reserved = cache_bytes(checkpoint.config, use.n_reserved) - need.cache + _LIBRARIES
    # Norms, biases and positions in F32 are in memory already: `formats` copies them.
    in_memory = need.vectors
    for spec, tensor in _used(checkpoint).values():
        if spec.role is Role.POSITIONS and tensor.type is not TensorType.F32:
            in_memory -= 4 * math.prod(tensor.shape)
    addresses = machine.address_room()
    for room, more in ((machine.memory_room(), 0), (addresses, reserved)):
        if room is None:
            continue
        nbytes = room.nbytes + in_memory
        if need.total + more > nbytes:
            found = f"a model that would take {shown(need.total + more, math.ceil)}"
            expected = f"at most {shown(nbytes, math.floor)}, the {room.limit}"
            advice = _advice(checkpoint, use, need, nbytes, more)
            raise MemoryLimitError(checkpoint.source, found, expected, advice)
    return None if addresses is None else addresses.nbytes + in_memory - need.total - reserved


def _used(checkpoint: Checkpoint) -> dict[str, tuple[TensorSpec, Tensor]]:
    """The tensors that a model takes, but for those it will refuse."""
    specs = models.find(checkpoint).specs(checkpoint.config.n_layers)
    found = {
        n: (spec, checkpoint.tensors[n]) for n, spec in specs.items() if n in checkpoint.tensors
    }
    config = checkpoint.config
    return {n: (spec, t) for n, (spec, t) in found.items() if t.shape == spec.shape(config)}


def _token_bytes(checkpoint: Checkpoint) -> int:
    """What a token takes in its largest step: before attention, or before the last product."""
    config = checkpoint.config
    specs = models.find(checkpoint).specs(1).values()
    downs = [checkpoint.tensors.get(spec.name) for spec in specs if spec.role is Role.DOWN]
    is_float = any(down is not None and down.type.block_len == 1 for down in downs)
    hidden_bytes = 4 if is_float else 1  # rounded to 8 bits
    before_attention = 4 * (2 * config.dim + config.qkv_dim)
    return max(before_attention, 4 * config.dim + hidden_bytes * config.hidden_dim)


# ---- what would fit ------------------------------------------------------------------------------


def _advice(checkpoint: Checkpoint, use: Use, need: Need, room: int, reserved: int) -> str:
    if need.total <= room:
        fits_alone = need.total + _LIBRARIES <= room
        return "choose a smaller n_parallel" if fits_alone else "raise the limit"
    room -= reserved
    left = max(0, room - (need.total - need.cache))
    n_fit = left // cache_bytes(checkpoint.config, _RUN) * _RUN
    if n_fit:
        return f"{n_fit} tokens of context would fit: {use.context_option}"
    best = _best_type(checkpoint, use, room)
    if best is None:
        return "no type makes it small enough: use a smaller model, or a machine with more memory"
    name, nbytes = best
    option = use.type_option.format(source=shlex.quote(checkpoint.source), type=name)
    return f"as {name} it would take {shown(nbytes + reserved, math.ceil)}: {option}"


def _best_type(checkpoint: Checkpoint, use: Use, room: int) -> tuple[str, int] | None:
    """Of the types that `quantize` writes and that fit, the one that keeps most, and its bytes."""
    best, most = None, 0
    for mix in all_mixes():
        with suppress(StarcoderError):  # tensors that do not fit the configuration
            types, _ = quantize.plan(checkpoint, quantize.Choice(mix=mix))
            total = need_of(checkpoint, use, types).total
            kept = sum(types[n].nbytes(t.shape) for n, t in checkpoint.tensors.items())
            if total <= room and kept > most:
                best, most = (mix.name, total), kept
    return best


def shown(nbytes: int, whole: Callable[[float], int] = round) -> str:
    """Bytes for people: "8.6 GB"; `whole` says how the last digit is rounded."""
    unit, name = (1 << 30, "GB") if nbytes >= 1 << 30 else (1 << 20, "MB")
    return f"{whole(10 * nbytes / unit) / 10} {name}"
