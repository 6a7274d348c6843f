"""The loops that measure the machine do the work they claim, on every instruction set."""

from __future__ import annotations

import pytest

from starcoder import _core
from starcoder.core import limits, machine, ops
from starcoder.core.limits import Limits
from starcoder.core.machine import Room
from starcoder.core.tensor import TensorType
from starcoder.errors import MemoryLimitError


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_every_product_is_computed(isa: str, kind: int, n_threads: int) -> None:
    ops.set_n_threads(n_threads)
    per_second, product = _core.peak(kind, 0.001)
    assert product == 15  # the mean of 3 * 5
    assert per_second > 0 or kind == 1  # of bf16 not every machine has one


@pytest.mark.parametrize("bits", [0, 1, 1 << 63, 0xDEADBEEF12345678])
def test_all_memory_is_read(isa: str, bits: int) -> None:
    per_second, found = _core.Memory(1 << 20, bits).read(2)
    assert found == bits
    assert per_second > 0


class PretendedMemory(limits.Memory):
    """Memory that is read at 25 GB/s."""

    def __init__(self) -> None:
        pass

    def read_gbps(self) -> float:
        return 25.0


@pytest.mark.parametrize(("bf16", "expected"), [(2e9, 2.0), (0.0, 3.0)])
def test_each_limit_is_the_best_measurement_of_its_own(
    monkeypatch: pytest.MonkeyPatch, bf16: float, expected: float
) -> None:
    """And where the machine has no product of bf16, f32's counts."""
    runs = {kind: iter([best / 2, best]) for kind, best in enumerate((7e9, bf16, 3e9))}
    monkeypatch.setattr(_core, "peak", lambda kind, seconds: (next(runs[kind]), 15))
    found = limits.measure(PretendedMemory())
    assert found == Limits(read_gbps=25, int8_gmacs=7, bf16_gmacs=expected, f32_gmacs=3)


def test_without_memory_to_read_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_room", lambda: Room(500 << 20, "free memory"))
    with pytest.raises(MemoryLimitError, match="found 500 MB, the free memory, expected 1 GB"):
        limits.Memory()


def test_of_two_measurements_the_larger_numbers_count() -> None:
    assert Limits(1, 20, 3, 4).larger(Limits(2, 10, 4, 3)) == Limits(2, 20, 4, 4)


def test_a_prompt_is_limited_by_the_arithmetic_of_its_type() -> None:
    found = Limits(read_gbps=1, int8_gmacs=4, bf16_gmacs=2, f32_gmacs=1)
    expected = {TensorType.F32: 1, TensorType.F16: 1, TensorType.BF16: 2}
    assert {kind: found.gmacs(kind) for kind in expected} == expected
    assert found.gmacs(TensorType.Q4_0) == found.gmacs(TensorType.Q6_K) == 4
    slow_pairs = Limits(read_gbps=1, int8_gmacs=4, bf16_gmacs=1, f32_gmacs=2)
    assert slow_pairs.gmacs(TensorType.BF16) == 2
