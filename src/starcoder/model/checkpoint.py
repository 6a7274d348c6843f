"""Checkpoint: a whole model as one plain value, and the door between files and maths.

Readers in `formats` make it, `models.build` makes a model of it. Tensor names are GGUF's
(`blk.3.attn_qkv.weight`), shapes are row-major: (outputs, inputs).
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from starcoder.core import machine, ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import FormatError, MemoryLimitError
from starcoder.model.architecture import Architecture, Role
from starcoder.model.config import ModelConfig
from starcoder.model.vocab import Vocab

__all__ = ["Checkpoint", "Format", "settle"]


class Format(enum.Enum):
    """What a checkpoint was read from."""

    NONE = enum.auto()  # it was made here
    GGUF = enum.auto()
    GGML = enum.auto()  # a legacy .bin file
    HUGGING_FACE = enum.auto()  # a directory
    RANDOM = enum.auto()  # weights for measuring, of no file


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Configuration, vocabulary and weights of one model."""

    config: ModelConfig
    vocab: Vocab
    tensors: Mapping[str, Tensor]
    format: Format = field(default=Format.NONE, compare=False)
    label: str = field(default="", compare=False)  # "GGUF v3, 2 parts": the format, for people
    source: str = field(default="", compare=False)  # the file or directory, for messages
    notices: tuple[str, ...] = field(default=(), compare=False)  # what its user should know
    n_parts: int = field(default=1, compare=False)  # files that hold the weights
    # Keys of a GGUF file that writing it again keeps (author, license), each as it is encoded.
    carried: Mapping[str, bytes] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        found, expected = len(self.vocab.tokens), self.config.n_vocab
        if found != expected:
            raise FormatError(f"{self.source}: vocabulary", f"{found} tokens", f"{expected}")

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name`, which must have this shape.

        Raises:
            FormatError: no such tensor, or another shape.
        """
        tensor = self.tensors.get(name)
        where = f"{self.source}: tensor {name}"
        advice = "the file is damaged or was written for another model; convert it again"
        if tensor is None:
            raise FormatError(where, "no such tensor", f"shape {shape}", advice)
        if tensor.shape != shape:
            raise FormatError(where, f"shape {tensor.shape}", f"shape {shape}", advice)
        return tensor

    def check_files(self) -> None:
        """Make sure that no file of the weights changed since it was opened.

        Raises:
            FormatError: one was cut or written into, so that what was read of it is not its model.
        """
        for file in {file for tensor in self.tensors.values() for file in tensor.files()}:
            file.check()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def type_name(self) -> str:
        """The type that holds most of the weights' bytes, in lower case: "q4_0"."""
        totals: dict[str, int] = {}
        for tensor in self.tensors.values():
            totals[tensor.type.name] = totals.get(tensor.type.name, 0) + tensor.nbytes
        return max(totals, key=lambda name: totals[name]).lower() if totals else "empty"


# ------------------------------------------------------------------------------------------------


def settle(
    tensors: dict[str, Tensor],
    architecture: Architecture,
    where: str,
    *,
    keeps_positions: bool = False,
) -> dict[str, Tensor]:
    """The tensors as models want them, from whichever format.

    Vectors and position embeddings become F32, whatever their type, since they are added to
    activations as they are; with `keeps_positions`, position embeddings in F16 or BF16 stay so, to
    be written as they were. They are copies, so that nothing of the file is needed once the
    matrices are packed; only matrices keep the file's type and place. An output matrix that is a
    copy of the embedding goes: one matrix serves for both.

    Raises:
        MemoryLimitError: the copies need more memory than there is.
    """
    output, embedding = architecture.output(tensors), architecture.embedding
    if output != embedding and tensors[output] == tensors.get(embedding):
        tensors = {name: t for name, t in tensors.items() if name != output}
    positions = {spec.name for spec in architecture.tensors if spec.role is Role.POSITIONS}
    vectors = {n: t for n, t in tensors.items() if len(t.shape) == 1 or n in positions}
    _check_room(sum(4 * math.prod(t.shape) for t in vectors.values()), where)
    kept = (TensorType.F16, TensorType.BF16) if keeps_positions else ()
    return tensors | {
        name: _copy(t) if len(t.shape) == 2 and t.type in kept else _as_f32(t)
        for name, t in vectors.items()
    }


def _check_room(nbytes: int, where: str) -> None:
    """A hollow file may claim any size, so what is copied is compared with the memory there is."""
    room = machine.memory_room()
    if room is not None and nbytes > room.nbytes:
        found = f"norms, biases and position embeddings of {nbytes:,} bytes"
        expected = f"at most {room.nbytes:,}, the {room.limit}"
        raise MemoryLimitError(where, found, expected, "use a machine with more memory")


def _copy(tensor: Tensor) -> Tensor:
    data = tensor.data.copy()
    tensor.release()
    data.flags.writeable = False
    return Tensor(tensor.type, tensor.shape, data)


def _as_f32(tensor: Tensor) -> Tensor:
    if tensor.type is TensorType.F32:
        return _copy(tensor)
    n_rows = math.prod(tensor.shape[:-1])
    rows = Tensor(tensor.type, (n_rows, tensor.shape[-1]), tensor.data)
    data = ops.dequantize(rows).view(np.uint8).reshape(-1)
    tensor.release()
    data.flags.writeable = False
    return Tensor(TensorType.F32, tensor.shape, data)
