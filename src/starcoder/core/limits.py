"""What this machine can do at best, measured now: how fast it reads memory, and multiplies.

A speed says little without them: decoding a token reads every weight, and a prompt is multiplied.
The inner loops are in `csrc/probe/peak_loops.h`. All threads of `ops.n_threads` run them together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from starcoder import _core
from starcoder.core import machine
from starcoder.core.tensor import TensorType
from starcoder.errors import MemoryLimitError

__all__ = ["Limits", "Memory", "measure"]

_READ_BYTES = 1 << 30
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


class Memory:
    """1 GB to read, more than any cache. Keep one while a model is measured.

    Freeing it would slow the next measurements: a virtual machine reports freed memory to its host,
    and programs ran at three quarters of their speed meanwhile (docs/log.md).

    Raises:
        MemoryLimitError: there is not as much.
    """

    def __init__(self) -> None:
        room, expected = machine.memory_room(), f"{_READ_BYTES >> 30} GB to read"
        if room is not None and room.nbytes < _READ_BYTES:
            found = f"{room.nbytes >> 20} MB, the {room.limit}"
            raise MemoryLimitError("read bandwidth", found, expected)
        try:
            self._memory = _core.Memory(_READ_BYTES, _PATTERN)
        except MemoryError:
            raise MemoryLimitError("read bandwidth", "too little memory", expected) from None

    def read_gbps(self) -> float:
        """10^9 bytes that are read in a second, now."""
        return self._memory.read(_PASSES)[0] / 1e9


def measure(memory: Memory) -> Limits:
    """Measures all four, in a second or two."""
    int8, bf16, f32 = (
        max(_core.peak(kind, _SECONDS)[0] for _ in range(_REPEATS)) for kind in (_INT8, _BF16, _F32)
    )
    return Limits(memory.read_gbps(), int8 / 1e9, (bf16 or f32) / 1e9, f32 / 1e9)
