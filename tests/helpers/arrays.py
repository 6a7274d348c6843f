"""Arrays for the tests of kernels: random ones of awkward sizes, and how near answers must be."""

from __future__ import annotations

import numpy as np

from starcoder.core.tensor import TensorType

__all__ = ["assert_close", "columns", "random"]


def random(*shape: int, seed: int = 1) -> np.ndarray:
    """Normal numbers, the same for a shape and a seed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def columns(kind: TensorType) -> list[int]:
    """Odd lengths that are whole blocks: less than a group, no multiple of one, many strips."""
    return {1: [1, 33, 129, 1300], 32: [32, 160, 1312], 256: [256, 1280]}[kind.block_len]


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    """No number differs by more than this share of the largest one, or of 1."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())
