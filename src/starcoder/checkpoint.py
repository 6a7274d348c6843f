"""Checkpoint: a whole model as one plain value, and the door between files and maths.

Readers in `formats` make it, `models` build from it. Tensor names are GGUF's
(`blk.3.attn_qkv.weight`), shapes are row-major: (outputs, inputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from starcoder.config import ModelConfig
from starcoder.errors import FormatError
from starcoder.tensor import Tensor
from starcoder.vocab import Vocab

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Configuration, vocabulary and weights of one model."""

    config: ModelConfig
    vocab: Vocab
    tensors: Mapping[str, Tensor]
    format: str = field(default="", compare=False)  # "GGUF v3", for people to read
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
