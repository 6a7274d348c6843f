"""No kernel leaves its arrays, and arrays that do not fit never reach one."""

from __future__ import annotations

import numpy as np
import pytest

from starcoder import _core
from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.tensor import Tensor, TensorType
from tests.helpers import operations
from tests.helpers.arrays import columns, random
from tests.helpers.attention import HEADS, KV_TYPES, empty_cache
from tests.helpers.guarded import guarded
from tests.helpers.weights import random_tensor

TYPES = list(TensorType)
pytestmark = pytest.mark.usefixtures("core_restored")


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_no_kernel_touches_memory_beyond_its_arrays(
    kind: TensorType, after: bool, isa: str
) -> None:
    for n_cols in columns(kind)[:3]:
        for n_rows, n in ((1, 1), (17, 3), (33, 53)):
            tensor = random_tensor(kind, n_rows, n_cols)
            edge = Tensor(kind, tensor.shape, guarded(tensor.data, after=after))
            w, x = ops.pack(edge), guarded(random(n, n_cols), after=after)
            bias = guarded(random(n_rows), after=after)
            residual = guarded(random(n, n_rows), after=after)
            out = guarded(np.zeros((n, n_rows), np.float32), after=after)
            _core.testing.linear(w, x, bias, 1, residual, out)
            plain = operations.linear(x, w, bias, activation="gelu_tanh", residual=residual)
            assert np.array_equal(out, plain)


@pytest.mark.parametrize("after", [True, False])
@KV_TYPES
def test_no_attention_touches_memory_beyond_its_arrays(kv: type, after: bool, isa: str) -> None:
    for n_heads, n_kv_heads, head_dim in HEADS[:3]:
        n, (keys, values) = 35, empty_cache(3, n_kv_heads, head_dim, kv)
        keys, values = guarded(keys, after=after), guarded(values, after=after)
        qkv = guarded(random(n, (n_heads + 2 * n_kv_heads) * head_dim), after=after)
        batch = Batch.of([([0] * n, 0, [2, 0, 1])], [])
        operations.store_kv(qkv, n_heads, batch, keys, values)
        places = batch.positions, batch.row_starts, batch.block_tables
        out = guarded(np.zeros((n, n_heads * head_dim), np.float32), after=after)
        bits = keys.view(np.uint16), values.view(np.uint16)
        _core.testing.attention(qkv, n_heads, *places, *bits, kv is np.uint16, out)
        assert np.isfinite(out).all()
    weight, bias = guarded(random(37), after=after), guarded(random(37), after=after)
    x, out = guarded(random(2, 37), after=after), guarded(random(2, 37), after=after)
    _core.testing.layer_norm(x, weight, bias, 1e-5, out)
    assert np.isfinite(out).all()


def test_arrays_that_do_not_fit_are_refused_before_anything_runs() -> None:
    w = ops.pack(random_tensor(TensorType.Q4_0, 16, 64))
    with pytest.raises(ValueError, match="x \\(n, k\\)"):
        operations.linear(random(2, 63), w)
    with pytest.raises(ValueError, match="bias"):
        operations.linear(random(2, 64), w, random(15))
    with pytest.raises(ValueError, match="ids from 0"):
        operations.embed(np.array([16], np.int32), w)
    with pytest.raises(ValueError, match="as many bytes"):
        _core.Matrix(2, np.zeros(17, np.uint8), 1, 32)
    with pytest.raises(ValueError, match="unknown tensor type"):
        _core.Matrix(4, np.zeros(18, np.uint8), 1, 32)
    keys, values = empty_cache(2, 1, 16)
    outside = Batch.of([([0], 0, [2])], [])
    with pytest.raises(ValueError, match="block tables"):
        operations.attention(random(1, 48), 1, outside, keys, values)
