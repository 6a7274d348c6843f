"""Fingerprint: tells whether keys and values that were computed once are those of this model.

A digest of the configuration, and of each tensor's name, type, shape and first, middle and last
row: a model that was trained on or quantized otherwise has other bytes in them, and reading all of
a large one would take longer than computing a prompt. A file that was moved or renamed stays the
same. So does the vocabulary's part: what is computed hangs on ids.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

from starcoder import __version__
from starcoder.core.tensor import Tensor
from starcoder.model.checkpoint import Checkpoint

__all__ = ["fingerprint"]

_BYTES = 4096  # of a row, or of a vector, which has none


def fingerprint(checkpoint: Checkpoint) -> str:
    """64 hexadecimal digits; other ones in other versions of this package, which may round anew."""
    config = checkpoint.config
    shape = [(f.name, getattr(config, f.name)) for f in fields(config) if f.compare]
    digest = hashlib.sha256(repr((__version__, shape)).encode())
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(repr((name, tensor.type.name, tensor.shape)).encode())
        for part in _parts(tensor):
            digest.update(part.data.reshape(-1)[:_BYTES].tobytes())
    return digest.hexdigest()


def _parts(tensor: Tensor) -> list[Tensor]:
    if len(tensor.shape) == 1:
        return [tensor]
    n = tensor.shape[0]
    return [tensor.rows(i, i + 1) for i in sorted({0, n // 2, n - 1})]
