"""Infinities and NaNs stay visible behind every operation, as they do in the slow twins."""

from __future__ import annotations

import numpy as np
import pytest

from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.tensor import Tensor, TensorType
from tests import reference
from tests.helpers import operations
from tests.helpers.arrays import assert_close, random
from tests.helpers.attention import KV_TYPES, empty_cache, shuffled_blocks, some_rows, tolerance
from tests.helpers.weights import random_tensor

TYPES = list(TensorType)
pytestmark = pytest.mark.usefixtures("core_restored")
BAD = [np.nan, np.inf, -np.inf]


def quiet() -> np.errstate:
    """No warnings of numpy, in the twins."""
    return np.errstate(invalid="ignore", over="ignore")


def assert_as_visible(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    """Not finite where the twin is not, and otherwise the same."""
    finite = np.isfinite(expected)
    assert np.array_equal(np.isfinite(found), finite)
    assert_close(np.where(finite, found, 0), np.where(finite, expected, 0), tolerance)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_what_is_not_finite_stays_visible_in_products(
    kind: TensorType, bad: float, isa: str
) -> None:
    w = random_tensor(kind, 40, 256)
    packed = ops.pack(w)
    for n in (1, 4, 60):
        x, bias, residual = random(n, 256), random(40, seed=2), random(n, 40, seed=3)
        for array in (x, bias, residual):
            kept, array.flat[21] = array.flat[21], bad
            with quiet():
                expected = reference.linear(x, w, bias, residual=residual)
            assert not np.isfinite(expected).all()
            assert_as_visible(operations.linear(x, packed, bias, residual=residual), expected)
            array.flat[21] = kept


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_weight_that_is_not_finite_stays_visible(kind: str, bad: float, isa: str) -> None:
    floats = random(40, 160)
    floats[7, 130] = bad
    w = reference.quantize(floats, TensorType[kind])
    for n in (1, 4, 60):
        x = random(n, 160)
        with quiet():
            expected = reference.linear(x, w)
        assert not np.isfinite(expected[:, 7]).any()
        assert_as_visible(operations.linear(x, ops.pack(w)), expected)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf"])
def test_what_is_not_finite_stays_visible_in_gelu(activation: str, isa: str) -> None:
    x = np.tile(np.array([*BAD, 1, -1], np.float32), 9).reshape(-1, 1)
    one = Tensor(TensorType.F32, (1, 1), np.ones(1, np.float32).view(np.uint8))
    with quiet():
        expected = reference.linear(x, one, activation=activation)
    assert_as_visible(operations.linear(x, ops.pack(one), activation=activation), expected)


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_stays_visible_in_rms_norms_and_gates(bad: float, isa: str) -> None:
    x, one = random(1, 70), np.ones((1, 70), np.float32)
    x[0, 40] = bad
    assert not np.isfinite(operations.rms_norm(x, one[0], 1e-5)).any()
    with np.errstate(over="ignore"):
        assert not np.isfinite(operations.rms_norm(one * 1e30, one[0], 1e-5)).any()
    assert not np.isfinite(operations.gated(one, x)[0, 40])
    if not bad < 0:  # x / (1 + e^-x) is nearly nothing there
        assert not np.isfinite(operations.gated(x, one)[0, 40])


@pytest.mark.parametrize("bad", BAD)
def test_what_is_not_finite_stays_visible_in_norms(bad: float, isa: str) -> None:
    for at in (3, 39):  # in a whole vector, and behind the last
        x, weight, bias = random(5, 40), random(40, seed=2), random(40, seed=3)
        for array in (x, weight, bias):
            kept, array.flat[at] = array.flat[at], bad
            with quiet():
                expected = reference.layer_norm(x, weight, bias, 1e-5)
            assert_as_visible(operations.layer_norm(x, weight, bias, 1e-5), expected)
            array.flat[at] = kept


def test_a_variance_beyond_the_floats_is_visible(isa: str) -> None:
    x = random(3, 40)
    x[1] *= 1e20
    found = operations.layer_norm(x, random(40, seed=2), random(40, seed=3), 1e-5)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


# Several parts of 256 keys; two heads of keys and values, three queries for each.
N_KEYS, N_HEADS, N_KV_HEADS, HEAD_DIM = 530, 6, 2, 20


def attend_both_ways(qkv: np.ndarray, rows: list[int], kv: type) -> tuple[np.ndarray, np.ndarray]:
    """These rows of attention over all of qkv, by the kernels in one batch, and by the twin."""
    n, table = len(qkv), shuffled_blocks(len(qkv), 40)
    cache = empty_cache(40, N_KV_HEADS, HEAD_DIM, kv)
    slow = empty_cache(40, N_KV_HEADS, HEAD_DIM, kv)
    everything = Batch.of([([0] * n, 0, table)], [])
    some = some_rows(everything, rows)
    operations.store_kv(qkv, N_HEADS, everything, *cache)
    found = operations.attention(qkv[rows], N_HEADS, some, *cache)
    with quiet():
        reference.store_kv(qkv, N_HEADS, everything, *slow)
        return found, reference.attention(qkv[rows], N_HEADS, some, *slow)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("part", ["query", "key", "value"])
@pytest.mark.parametrize("at", [7, 300])  # in the first part of the keys, and not
@KV_TYPES
def test_what_is_not_finite_stays_visible_in_attention(
    kv: type, at: int, part: str, bad: float, isa: str
) -> None:
    last = N_KEYS - 1
    head = {"query": 4, "key": N_HEADS + 1, "value": N_HEADS + N_KV_HEADS + 1}[part]
    for rows in ([at], [last], list(range(at - 7, at + 7)), [0, at - 1, at, at + 1, last]):
        for row in (at, last):
            qkv = random(N_KEYS, (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM)
            qkv[row, head * HEAD_DIM + 13] = bad
            for n_threads in (1, 2):
                ops.set_n_threads(n_threads)
                found, expected = attend_both_ways(qkv, rows, kv)
                assert_as_visible(found, expected, tolerance(kv))
            if row in rows and (part != "key" or np.isnan(bad)):
                assert not np.isfinite(found[rows.index(row)]).all()


@KV_TYPES
def test_scores_of_minus_infinity_weigh_nothing_unless_there_is_no_other(
    kv: type, isa: str
) -> None:
    qkv = random(N_KEYS, (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM)
    qkv[:, :HEAD_DIM] = abs(qkv[:, :HEAD_DIM])  # head 0 asks with positive numbers alone
    for first, visible in ((1, True), (0, False)):
        qkv[first:256, N_HEADS * HEAD_DIM] = -np.inf  # in the keys of the first part
        for rows in ([N_KEYS - 1], list(range(240, 280))):
            for n_threads in (1, 2):
                ops.set_n_threads(n_threads)
                found, expected = attend_both_ways(qkv, rows, kv)
                assert_as_visible(found, expected, tolerance(kv))
                assert np.isfinite(found[:, :HEAD_DIM]).all() == visible


@KV_TYPES
def test_keys_and_values_beyond_the_cache_s_type_are_infinite_as_in_the_twin(
    kv: type, isa: str
) -> None:
    for head in (N_HEADS, N_HEADS + N_KV_HEADS):
        for large in (70_000, -70_000):
            qkv = random(N_KEYS, (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM)
            qkv[300, head * HEAD_DIM] = large
            found, expected = attend_both_ways(qkv, [299, 300, N_KEYS - 1], kv)
            assert_as_visible(found, expected, tolerance(kv))
            if head > N_HEADS:
                assert np.isfinite(found[1]).all() == (kv is np.uint16)
