"""What this machine can do at best, measured now: how fast it reads memory, and multiplies.

A speed says little without them: decoding a token reads every weight, and a prompt is multiplied.
The inner loops are in `csrc/loops_limits.h`. All threads of `ops.n_threads` run them together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from starcoder import _core
from starcoder.errors import MemoryLimitError
from starcoder.tensor import TensorType

__all__ = ["Limits", "measure", "read_gbps"]

_READ_BYTES = 1 << 30  # far more than any cache
_PASSES = 8  # over it, all together: a quarter of a second at 32 GB/s
_SECONDS, _REPEATS = 0.1, 2  # of each peak
_INT8, _BF16, _F32 = range(3)
_PATTERN = 0x0123456789ABCDEF


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes read and multiply-adds done in a second, in units of 10^9, by all threads together."""

    read_gbps: float
    int8_gmacs: float
    bf16_gmacs: float  # f32's, where the machine has no product of bf16: there it is computed so
    f32_gmacs: float

    def gmacs(self, type: TensorType) -> float:  # noqa: A002
        """The limit of a prompt with weights of this type.

        BF16 is multiplied as it is or as f32, and the faster of the two is its limit; F16 is
        multiplied as f32, quantized weights as int8.
        """
        if type is TensorType.BF16:
            return max(self.bf16_gmacs, self.f32_gmacs)
        return self.f32_gmacs if type.block_len == 1 else self.int8_gmacs

    def larger(self, other: Limits) -> Limits:
        """Of each limit the larger of both measurements."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Limits(*map(max, pairs))


def measure() -> Limits:
    """Measures all four, in a second or two. For that time it takes 1 GB of memory.

    Raises:
        MemoryLimitError: no memory to read.
    """
    int8, bf16, f32 = (
        max(_core.peak(kind, _SECONDS)[0] for _ in range(_REPEATS)) for kind in (_INT8, _BF16, _F32)
    )
    return Limits(read_gbps(), int8 / 1e9, (bf16 or f32) / 1e9, f32 / 1e9)


def read_gbps() -> float:
    """10^9 bytes of memory that are read in a second, now. For half a second it takes 1 GB.

    Raises:
        MemoryLimitError: no memory to read.
    """
    try:
        read, _ = _core.read_memory(_READ_BYTES, _PASSES, _PATTERN)
    except MemoryError:
        found, expected = "too little memory", f"{_READ_BYTES >> 30} GB to read"
        raise MemoryLimitError("read bandwidth", found, expected) from None
    return read / 1e9
