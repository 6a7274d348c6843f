"""Weights on their way into the core: the bytes of a file decoded, and packed for products."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from tests import reference
from tests.helpers import operations
from tests.helpers.arrays import columns, random
from tests.helpers.weights import SCALES, random_tensor

TYPES = list(TensorType)
pytestmark = pytest.mark.usefixtures("core_restored")


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_bytes_mean_what_ggml_says_they_mean(kind: TensorType) -> None:
    tensor = random_tensor(kind, 7, columns(kind)[-1])
    found = ops.dequantize(tensor)
    assert np.array_equal(found, reference.dequantize(tensor))
    if kind in SCALES:
        theirs = gguf.quants.dequantize(tensor.data, gguf.GGMLQuantizationType(int(kind)))
        assert np.array_equal(found, theirs.reshape(tensor.shape))


def test_every_half_float_is_widened_as_numpy_widens_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    tensor = Tensor(TensorType.F16, (256, 256), halves.view(np.uint8))
    with np.errstate(invalid="ignore"):  # numpy on ARM warns of signaling not-a-numbers
        expected = halves.view(np.float16).astype(np.float32).reshape(256, 256)
    np.testing.assert_array_equal(ops.dequantize(tensor), expected)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_packing_keeps_the_weights_of_the_reference_exactly(kind: TensorType, isa: str) -> None:
    for n_cols in columns(kind):
        tensor, ids = random_tensor(kind, 37, n_cols), np.arange(37, dtype=np.int32)
        assert np.array_equal(operations.embed(ids, ops.pack(tensor)), reference.embed(ids, tensor))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_weights_may_begin_at_any_byte_of_a_file(kind: TensorType, isa: str) -> None:
    tensor, ids = random_tensor(kind, 37, columns(kind)[-1]), np.arange(37, dtype=np.int32)
    room = np.zeros(tensor.nbytes + 3, np.uint8)
    for at in (1, 2, 3):
        moved = Tensor(kind, tensor.shape, room[at : at + tensor.nbytes])
        moved.data[:] = tensor.data
        assert np.array_equal(ops.dequantize(moved), ops.dequantize(tensor))
        packed = ops.pack(moved)
        assert np.array_equal(
            operations.embed(ids, packed), operations.embed(ids, ops.pack(tensor))
        )
        assert ops.first_non_finite(moved) == ops.first_non_finite(tensor)
        wide = ops.requantize(moved, TensorType.F32)
        assert np.array_equal(wide.data, ops.requantize(tensor, TensorType.F32).data)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_packed_weights_are_as_good_as_those_of_the_file(kind: TensorType) -> None:
    tensor = random_tensor(kind, 64, 1280)
    kept, file = reference.packed(tensor), reference.dequantize(tensor)
    error = np.abs(kept - file).max(axis=1) / np.abs(file).max(axis=1)
    assert error.max() <= {"Q4_0": 6e-5, "Q3_K": 6e-5}.get(kind.name, 1.5e-4)
    if kind.name not in ("Q4_0", "Q4_1", "Q2_K", "Q3_K", "Q4_K"):
        assert np.array_equal(kept, file)


@pytest.mark.parametrize("kind", SCALES, ids=lambda kind: kind.name)
def test_scales_of_any_size_are_packed_as_the_reference_packs_them(
    kind: TensorType, isa: str
) -> None:
    tensor, rng = random_tensor(kind, 40, 512), np.random.default_rng(7)
    blocks, ids = tensor.data.reshape(40, -1, kind.block_bytes), np.arange(40, dtype=np.int32)
    for at in SCALES[kind]:
        scales = blocks[:, :, at : at + 2].copy().view(np.uint16)
        scales[:20] = rng.integers(0, 0x7C00, scales[:20].shape)  # any finite one, of 40 binades
        scales[:20] |= rng.integers(0, 2, scales[:20].shape).astype(np.uint16) << 15
        scales[20], scales[21, 1:], scales[22, :1] = 0, 0, 0x7BFF
        scales[30, -1], scales[31, 0] = 0x7C00, 0x7E01  # infinite; not a number
        blocks[:, :, at : at + 2] = scales.view(np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = reference.embed(ids, tensor)
    found = operations.embed(ids, ops.pack(tensor))
    assert np.array_equal(found, expected, equal_nan=True)
    x = random(2, 512)
    y = operations.linear(x, ops.pack(tensor))
    finite = np.asarray(np.isfinite(expected).all(axis=1))
    assert np.array_equal(np.isfinite(y), np.broadcast_to(finite, y.shape))
    assert finite[:30].all()
    assert not finite[[30, 31]].any()


def test_packed_weights_take_hardly_more_room_than_the_file() -> None:
    kept = {"Q4_0": 1, "Q4_1": 1, "Q8_0": 1, "Q5_0": 1, "Q5_1": 1, "IQ4_NL": 1, "F16": 1}
    for name, limit in {**kept, "Q4_K": 1.06, "Q5_K": 1.05, "Q6_K": 1.03}.items():
        tensor = random_tensor(TensorType[name], 64, 1024)
        assert ops.pack(tensor).nbytes <= limit * tensor.nbytes + 4 * tensor.shape[0] + 1, name
