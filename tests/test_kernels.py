"""The kernels: every operation, type and instruction set against the reference, bit by bit where
the bits are promised.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from starcoder import _core
from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import InputError
from tests import reference
from tests.helpers import operations
from tests.helpers.guarded import guarded
from tests.helpers.weights import SCALES, random_tensor

ISAS = ops.available_isas()
TYPES = list(TensorType)
pytestmark = pytest.mark.usefixtures("core_restored")


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def columns(kind: TensorType) -> list[int]:
    """Odd lengths that are whole blocks: less than a group, no multiple of one, many strips."""
    return {1: [1, 33, 129, 1300], 32: [32, 160, 1312], 256: [256, 1280]}[kind.block_len]


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


# ---- types ---------------------------------------------------------------------------------------


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


# ---- linear --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_linear_equals_the_reference(kind: TensorType, isa: str) -> None:
    for n_cols in columns(kind):
        for n_rows, n in ((1, 1), (16, 2), (33, 13), (80, 55)):
            w, x = random_tensor(kind, n_rows, n_cols), random(n, n_cols)
            bias, residual = random(n_rows, seed=2), random(n, n_rows, seed=3)
            found = operations.linear(x, ops.pack(w), bias, residual=residual)
            assert_close(found, reference.linear(x, w, bias, residual=residual))


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf"])
def test_gelu_equals_the_reference_from_end_to_end(activation: str, isa: str) -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32).reshape(-1, 1)
    one = Tensor(TensorType.F32, (1, 1), np.ones(1, np.float32).view(np.uint8))
    found = operations.linear(x, ops.pack(one), activation=activation)
    assert_close(found, reference.linear(x, one, activation=activation), 1e-7)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_token_gets_the_same_bits_in_every_batch(kind: TensorType, isa: str) -> None:
    n_cols = columns(kind)[-1]
    w, x = ops.pack(random_tensor(kind, 50, n_cols)), random(290, n_cols)
    whole = operations.linear(x, w, activation="gelu_tanh")
    for n in (1, 2, 3, 5, 6, 7, 11, 12, 13, 17, 24, 25, 48, 49, 59, 265):
        part = operations.linear(x[4 : 4 + n], w, activation="gelu_tanh")
        assert np.array_equal(part, whole[4 : 4 + n]), n


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_any_number_of_threads_gives_the_same_bits(kind: TensorType, isa: str) -> None:
    n_cols = columns(kind)[-1]
    w, x = ops.pack(random_tensor(kind, 150, n_cols)), random(9, n_cols)
    ops.set_n_threads(1)
    expected = operations.linear(x, w)
    for n in (2, 3, 5):
        ops.set_n_threads(n)
        assert np.array_equal(operations.linear(x, w), expected), n


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_instruction_set_gives_the_same_bits(kind: TensorType) -> None:
    n_cols, answers = columns(kind)[-1], []
    w, x, before = ops.pack(random_tensor(kind, 50, n_cols)), random(62, n_cols), ops.isa()
    for name in ISAS:
        ops.use_isa(name)
        answers.append(operations.linear(x, w, activation="gelu_erf"))
    ops.use_isa(before)
    for name, answer in zip(ISAS, answers, strict=True):
        assert np.array_equal(answer, answers[0]), name


def test_extreme_codes_and_activations_never_overflow(isa: str) -> None:
    x = np.full((60, 256), 3.0, np.float32)  # more rows than go straight from the panels
    x[1::3], x[2::3, ::2] = -3.0, -3.0
    for kind in TYPES:
        for byte in (0x00, 0x7F, 0x80, 0xFF):
            w = random_tensor(kind, 16, 256)
            if kind not in SCALES:
                continue
            blocks = w.data.reshape(-1, kind.block_bytes)
            scales = {at: blocks[:, at : at + 2].copy() for at in SCALES[kind]}
            blocks[:] = byte
            for at, scale in scales.items():
                blocks[:, at : at + 2] = scale
            assert_close(operations.linear(x, ops.pack(w)), reference.linear(x, w))


def test_tiny_and_zero_activations_give_zero(isa: str) -> None:
    x = np.zeros((2, 256), np.float32)
    x[1] = 1e-38
    y = operations.linear(x, ops.pack(random_tensor(TensorType.Q8_0, 16, 256)))
    assert not y.any()


# ---- layer norm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 5, 16, 40, 768, 2049])
def test_layer_norm_equals_the_reference(dim: int, isa: str) -> None:
    x, weight, bias = random(9, dim) * 3 + 1, random(dim, seed=2), random(dim, seed=3)
    found = operations.layer_norm(x, weight, bias, 1e-5)
    assert_close(found, reference.layer_norm(x, weight, bias, 1e-5))
    assert np.array_equal(operations.layer_norm(x[3:4], weight, bias, 1e-5), found[3:4])


# ---- RMS norm, gates, rotary positions -----------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 5, 16, 40, 768, 2049])
def test_rms_norm_has_the_bits_of_the_reference(dim: int, isa: str) -> None:
    x, weight = random(9, dim) * 3 + 1, random(dim, seed=2)
    found = operations.rms_norm(x, weight, 1e-5)
    assert np.array_equal(found, reference.rms_norm(x, weight, 1e-5))
    assert np.array_equal(operations.rms_norm(x[3:4], weight, 1e-5), found[3:4])


@pytest.mark.parametrize("activation", [*ops.ACTIVATIONS])
def test_a_gate_equals_the_reference(activation: str | None, isa: str) -> None:
    for m in (1, 7, 512, 1300):
        gate, up = random(3, m, seed=m) * 4, random(3, m, seed=2)
        opened = operations.gated(gate, np.ones_like(up), activation)
        assert_close(opened, reference.gated(gate, np.ones_like(up), activation))
        assert np.array_equal(operations.gated(gate, up, activation), opened * up)


def test_a_gate_has_one_answer_on_every_instruction_set() -> None:
    gate, up = random(3, 1300) * 4, random(3, 1300, seed=2)
    for activation in ops.ACTIVATIONS:
        answers = set()
        for name in ISAS:
            ops.use_isa(name)
            answers.add(operations.gated(gate, up, activation).tobytes())
        assert len(answers) == 1


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (6, 2)])
def test_turned_by_their_positions_queries_and_keys_have_the_bits_of_the_reference(
    n_heads: int, n_kv_heads: int, isa: str
) -> None:
    d, batch = 20, Batch.of([([0] * 3, 5, [0]), ([0] * 2, 0, [1])], [])
    qkv, table = random(5, (n_heads + 2 * n_kv_heads) * d), random(9, 2, d // 2, seed=2)
    found = operations.rotate(qkv, n_heads, n_kv_heads, batch, table)
    assert np.array_equal(found, reference.rotate(qkv, n_heads, n_kv_heads, batch, table))
    values = slice((n_heads + n_kv_heads) * d, None)
    assert np.array_equal(found[:, values], qkv[:, values])


# ---- attention -----------------------------------------------------------------------------------


KV_TYPES = pytest.mark.parametrize("kv", [np.float16, np.uint16], ids=["f16", "bf16"])


def empty_cache(
    n_blocks: int, n_kv_heads: int, head_dim: int, kv: type[np.generic] = np.float16
) -> tuple[np.ndarray, np.ndarray]:
    width = -(-head_dim // 16) * 16
    keys = np.zeros((n_blocks, n_kv_heads, width, 16), kv)
    return keys, np.zeros((n_blocks, n_kv_heads, 16, width), kv)


def shuffled_blocks(n: int, n_blocks: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).permutation(n_blocks)[: -(-n // 16)].tolist()


HEADS = [(1, 1, 8), (4, 1, 64), (6, 2, 20), (12, 12, 16), (19, 1, 128)]


@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), HEADS)
@pytest.mark.parametrize("n", [1, 15, 17, 300, 530])
@KV_TYPES
def test_attention_equals_the_reference(
    kv: type, n: int, n_heads: int, n_kv_heads: int, head_dim: int, isa: str
) -> None:
    qkv = random(n, (n_heads + 2 * n_kv_heads) * head_dim)
    batch = Batch.of([([0] * n, 0, shuffled_blocks(n, 40))], [])
    cache, slow = (empty_cache(40, n_kv_heads, head_dim, kv) for _ in range(2))
    operations.store_kv(qkv, n_heads, batch, *cache)
    reference.store_kv(qkv, n_heads, batch, *slow)
    assert np.array_equal(cache[0], slow[0])
    assert np.array_equal(cache[1], slow[1])
    some = sorted({0, n // 2, n - 1})  # the reference is slow: it need not do all rows
    found = operations.attention(qkv, n_heads, batch, *cache)[some]
    rows = Batch(
        tokens=batch.tokens[some],
        positions=batch.positions[some],
        row_starts=np.array([0, len(some)], np.int32),
        block_tables=batch.block_tables,
        logit_rows=np.array([], np.int32),
    )
    # A weight between two numbers of bf16 may become either: the last bits of exp differ.
    tolerance = 1e-6 if kv is np.float16 else 1e-4
    assert_close(found, reference.attention(qkv[some], n_heads, rows, *slow), tolerance)


def run_chunks(
    qkv: np.ndarray, sizes: list[int], table: list[int], heads: int, kv: type
) -> np.ndarray:
    """Attention over one sequence that arrives in pieces of these sizes."""
    cache, out, at = empty_cache(40, 1, 32, kv), [], 0
    for size in sizes:
        batch = Batch.of([([0] * size, at, table)], [])
        operations.store_kv(qkv[at : at + size], heads, batch, *cache)
        out.append(operations.attention(qkv[at : at + size], heads, batch, *cache))
        at += size
    return np.concatenate(out)


@KV_TYPES
def test_attention_has_one_answer_whole_in_chunks_and_on_any_thread(kv: type, isa: str) -> None:
    n, heads = 600, 5  # three parts of 256 keys
    qkv, table = random(n, (heads + 2) * 32), shuffled_blocks(n, 40)
    whole = run_chunks(qkv, [n], table, heads, kv)
    for n_threads in (1, 2, 3):
        ops.set_n_threads(n_threads)
        for sizes in ([n], [100] * 6, [257, 1, 1, 300, 41], [599, 1]):
            assert np.array_equal(run_chunks(qkv, sizes, table, heads, kv), whole)


@KV_TYPES
def test_a_token_each_of_short_and_long_sequences_has_the_answer_it_has_alone(
    kv: type, isa: str
) -> None:
    sizes, heads = [20, 600, 257, 256], 9
    tables = [[80, 77], list(range(39, 1, -1)), list(range(40, 57)), list(range(60, 76))]
    cache, rows, alone = empty_cache(90, 1, 32, kv), [], []
    for n, table in zip(sizes, tables, strict=True):
        qkv, batch = random(n, (heads + 2) * 32, seed=n), Batch.of([([0] * n, 0, table)], [])
        operations.store_kv(qkv, heads, batch, *cache)
        alone.append(operations.attention(qkv, heads, batch, *cache)[-1])
        rows.append(qkv[-1])
    ends = [([0], n - 1, table) for n, table in zip(sizes, tables, strict=True)]
    for n_threads in (1, 2, 3):
        ops.set_n_threads(n_threads)
        found = operations.attention(np.stack(rows), heads, Batch.of(ends, []), *cache)
        assert np.array_equal(found, np.stack(alone))


@KV_TYPES
def test_attention_has_one_answer_on_every_instruction_set(kv: type) -> None:
    qkv, table, before = random(300, 7 * 32), shuffled_blocks(300, 40), ops.isa()
    answers = []
    for name in ISAS:
        ops.use_isa(name)
        answers.append(run_chunks(qkv, [299, 1], table, 5, kv))
    ops.use_isa(before)
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize("n", [1, 6, 7, 31])
@KV_TYPES
def test_what_stands_behind_a_token_is_not_seen(kv: type, n: int, isa: str) -> None:
    qkv, batch = random(n, 5 * 16), Batch.of([([0] * n, 0, [1, 0])], [])
    clean, dirty = empty_cache(2, 1, 16, kv), empty_cache(2, 1, 16, kv)
    for part in dirty:
        part.view(np.uint16)[...] = 0x7FFF  # not a number, in f16 as in bf16
    answers = []
    for cache in (clean, dirty):
        operations.store_kv(qkv, 3, batch, *cache)
        answers.append(operations.attention(qkv, 3, batch, *cache))
    assert np.array_equal(answers[0], answers[1])


@KV_TYPES
def test_sequences_in_one_batch_do_not_see_each_other(kv: type, isa: str) -> None:
    sizes, heads, tables = [3, 40, 1], 4, [[7], [2, 0, 5], [9]]
    parts = [random(n, (heads + 2) * 16, seed=n) for n in sizes]
    alone = []
    for part, table in zip(parts, tables, strict=True):
        cache, batch = empty_cache(10, 1, 16, kv), Batch.of([([0] * len(part), 0, table)], [])
        operations.store_kv(part, heads, batch, *cache)
        alone.append(operations.attention(part, heads, batch, *cache))
    rows = list(zip(([0] * n for n in sizes), [0, 0, 0], tables, strict=True))
    cache, batch, qkv = empty_cache(10, 1, 16, kv), Batch.of(rows, []), np.concatenate(parts)
    operations.store_kv(qkv, heads, batch, *cache)
    assert np.array_equal(operations.attention(qkv, heads, batch, *cache), np.concatenate(alone))


# ---- numbers that are not finite -----------------------------------------------------------------


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
    some = Batch(
        tokens=everything.tokens[rows],
        positions=everything.positions[rows],
        row_starts=np.array([0, len(rows)], np.int32),
        block_tables=everything.block_tables,
        logit_rows=np.array([], np.int32),
    )
    operations.store_kv(qkv, N_HEADS, everything, *cache)
    found = operations.attention(qkv[rows], N_HEADS, some, *cache)
    with quiet():
        reference.store_kv(qkv, N_HEADS, everything, *slow)
        return found, reference.attention(qkv[rows], N_HEADS, some, *slow)


def tolerance(kv: type) -> float:
    return 1e-6 if kv is np.float16 else 1e-4


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


# ---- the edges of memory -------------------------------------------------------------------------


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


# ---- misuse --------------------------------------------------------------------------------------


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


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="found 'sse9', expected"):
        ops.use_isa("sse9")


def test_the_environment_names_an_instruction_set_for_the_first_operation() -> None:
    code = """
import starcoder.core.ops as ops  # which reads nothing yet
from starcoder import InputError
try:
    print(ops.isa())
except InputError as error:
    print(error)
"""
    for name, expected in (("scalar", "scalar"), ("sse9", "STARCODER_ISA: found 'sse9', expected")):
        environment = {**os.environ, "STARCODER_ISA": name}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
        assert run.stdout.decode().startswith(expected)


def test_a_forked_child_can_compute() -> None:
    code = f"""
import os, sys, numpy as np
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from tests.helpers import operations
ops.set_n_threads(3)
w = ops.pack(Tensor(TensorType.F32, (96, 8), np.ones(768, np.float32).view(np.uint8)))
x = np.ones((5, 8), np.float32)
operations.linear(x, w)
child = os.fork()
if child == 0:
    os._exit(0 if (operations.linear(x, w) == 8).all() else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60).returncode == 0
