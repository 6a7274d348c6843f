"""Attention: the twin's answer, and the same bits in chunks, in batches and on any thread."""

from __future__ import annotations

import numpy as np
import pytest

from starcoder.core import ops
from starcoder.core.batch import Batch
from tests import reference
from tests.helpers import operations
from tests.helpers.arrays import assert_close, random
from tests.helpers.attention import (
    HEADS,
    KV_TYPES,
    empty_cache,
    shuffled_blocks,
    some_rows,
    tolerance,
)

ISAS = ops.available_isas()
pytestmark = pytest.mark.usefixtures("core_restored")


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
    some = sorted({0, n // 2, n - 1})
    found = operations.attention(qkv, n_heads, batch, *cache)[some]
    expected = reference.attention(qkv[some], n_heads, some_rows(batch, some), *slow)
    assert_close(found, expected, tolerance(kv))


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
