"""What is recorded on a tape for other machines: every operation of the core.

Each with every type of weights, and up to more tokens than go straight from the panels; then what
Pocket computes for a few tokens. `tests/cpus.py` has the machines.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from starcoder import LLM
from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.tensor import TensorType
from tests.helpers import operations
from tests.helpers.tape import Tape
from tests.helpers.weights import random_tensor


def record_all(tape: Tape, *, full: bool) -> None:
    """Calls everything while `tape` records; with `full`, larger matrices and more tokens."""
    for kind in TensorType:
        record_linear(tape, kind, full=full)
        record_types(tape, kind)
        record_graph(tape, kind)
        record_gated_graph(tape, kind)
    for dtype in (np.float16, np.uint16):
        record_attention(tape, dtype)
    record_norms(tape)
    record_rotation(tape)
    record_limits(tape)
    record_pocket(tape)


def random(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def columns(kind: TensorType, full: bool) -> int:
    """Some groups of 128 and, where blocks allow it, a part of one."""
    if full:
        return 1280 if kind.block_len == 256 else 1312
    return 512 if kind.block_len == 256 else 416


def record_linear(tape: Tape, kind: TensorType, *, full: bool) -> None:
    """1, 9 and 60 tokens: from the panels, from several rounds of them, and through tiles."""
    m, k = 150, columns(kind, full)
    w, bias = ops.pack(random_tensor(kind, m, k)), random(m, seed=2)
    for n in (1, 2, 3, 5, 9, 25, 60, 290) if full else (1, 9, 60):
        tape.label = f"{kind.name}, n = {n}"
        x, residual = random(n, k, seed=n), random(n, m, seed=3)
        operations.linear(x, w)
        operations.linear(x, w, bias, activation="gelu_tanh")
        operations.linear(x, w, activation="gelu_erf", residual=residual)
        operations.linear(x, w, bias, residual=residual)
    operations.embed(np.array([0, 49, 16, 31, 32, 7], np.int32), w)


def odd_rows() -> np.ndarray:
    """(n, 256): ordinary weights; zeros of both signs, ties, one large weight, every magnitude."""
    rng = np.random.default_rng(5)
    rows = [rng.standard_normal(256) * 0.05 for _ in range(4)]
    rows += [np.zeros(256), np.full(256, -0.0), np.full(256, 0.25), rng.integers(-8, 9, 256) / 8]
    rows += [np.abs(rng.standard_normal(256)), np.where(np.arange(256) % 37, 1e-3, 1.0)]
    rows += [rng.standard_normal(256) * 10.0**e for e in (-38, -9, -5, 3, 30)]
    return np.array(rows, np.float32)


def record_types(tape: Tape, kind: TensorType) -> None:
    """Floats to blocks, blocks to floats, blocks to other blocks, and what is not finite."""
    tape.label = kind.name
    x = odd_rows()
    blocks = ops.quantize(x, kind)
    ops.quantize(x, kind, fused=True)
    ops.dequantize(blocks)
    ops.dequantize(random_tensor(kind, 3, 512))
    ops.first_non_finite(blocks)
    x[3, 77] = np.nan
    ops.first_non_finite(ops.quantize(x[:4], kind))
    for target in TensorType:
        tape.label = f"{kind.name} -> {target.name}"
        ops.requantize(random_tensor(kind, 2, 256), target)


def record_norms(tape: Tape) -> None:
    for dim in (1, 5, 16, 40, 768, 2049):
        tape.label = f"k = {dim}"
        x = random(9, dim) * 3 + 1
        operations.rms_norm(x, random(dim, seed=2), 1e-5)
        for activation in ops.ACTIVATIONS:
            operations.gated(x, random(9, dim, seed=4), activation)
        operations.layer_norm(x, random(dim, seed=2), random(dim, seed=3), 1e-5)


def empty_cache(
    blocks: int, kv_heads: int, head_dim: int, dtype: type[np.generic]
) -> tuple[np.ndarray, np.ndarray]:
    width = -(-head_dim // 16) * 16
    keys = np.zeros((blocks, kv_heads, width, 16), dtype)
    return keys, np.zeros((blocks, kv_heads, 16, width), dtype)


def record_attention(tape: Tape, dtype: type) -> None:
    """Prompts of every shape; a token each of short and long sequences; one after nine parts."""
    for heads, kv_heads, head_dim in ((4, 1, 64), (6, 2, 20), (12, 12, 16), (9, 1, 128)):
        for n in (1, 17, 60):
            tape.label = f"{np.dtype(dtype)}, {heads} heads of {head_dim}, n = {n}"
            qkv = random(n, (heads + 2 * kv_heads) * head_dim)
            attend(
                qkv, heads, [([0] * n, 0, [3, 1, 2, 0])], empty_cache(4, kv_heads, head_dim, dtype)
            )
    sizes, heads, head_dim = [20, 600, 257, 256], 5, 32
    tables = [[80, 77], list(range(39, 1, -1)), list(range(40, 57)), list(range(60, 76))]
    cache = empty_cache(90, 1, head_dim, dtype)
    for n, table in zip(sizes, tables, strict=True):
        tape.label = f"{np.dtype(dtype)}, a prompt of {n}"
        attend(random(n, (heads + 2) * head_dim, seed=n), heads, [([0] * n, 0, table)], cache)
    for ends in (range(4), (1,)):
        tape.label = f"{np.dtype(dtype)}, decoding {len(ends)}"
        rows = [([0], sizes[i], tables[i] + [79]) for i in ends]
        attend(random(len(rows), (heads + 2) * head_dim, seed=8), heads, rows, cache)
    n, table = 2100, list(range(131, -1, -1))
    tape.label, cache = f"{np.dtype(dtype)}, after {n}", empty_cache(132, 1, head_dim, dtype)
    qkv = random(n, (heads + 2) * head_dim, seed=9)
    operations.store_kv(qkv, heads, Batch.of([([0] * n, 0, table)], []), *cache)
    attend(qkv[:1], heads, [([0], n, table)], cache)


def record_rotation(tape: Tape) -> None:
    for heads, kv_heads, head_dim in ((4, 1, 64), (6, 2, 20)):
        tape.label = f"{heads} heads of {head_dim}"
        qkv, table = random(9, (heads + 2 * kv_heads) * head_dim), random(20, 2, head_dim // 2)
        operations.rotate(qkv, heads, kv_heads, Batch.of([([0] * 9, 11, [0, 1])], []), table)


def attend(
    qkv: np.ndarray, n_heads: int, rows: list[Any], cache: tuple[np.ndarray, np.ndarray]
) -> None:
    batch = Batch.of(rows, [])
    operations.store_kv(qkv, n_heads, batch, *cache)
    operations.attention(qkv, n_heads, batch, *cache)


def record_graph(tape: Tape, kind: TensorType) -> None:
    """Two layers around everything that a graph does: norms folded in, products of products."""
    dim, hidden, vocab, exact = 256, 512, 70, kind in (TensorType.F32, TensorType.F16)
    graph, norm = ops.Graph(), (random(dim, seed=1), random(dim, seed=2), 1e-5)

    def linear(m: int, k: int, x: int, activation: int = 0, residual: int | None = None) -> int:
        w = ops.pack(random_tensor(kind, m, k, seed=x))
        return graph.linear(w, x, random(m, seed=x), activation, residual)

    x = graph.embed(ops.pack(random_tensor(kind, vocab, dim)), random(80, dim, seed=3))
    for layer in range(2):
        qkv = linear(dim + 128, dim, graph.layer_norm(x, *norm))
        mixed = graph.attention(qkv, 4, 1, not exact)
        if layer:
            x, mixed = graph.select(x), graph.select(mixed)
        x = linear(dim, dim, mixed, residual=x)
        x = linear(
            dim, hidden, linear(hidden, dim, graph.layer_norm(x, *norm), 1 + layer), residual=x
        )
    linear(vocab, dim, graph.layer_norm(x, *norm))
    cache = (np.zeros((1, 2, 16, 1, 64, 16), np.uint16), np.zeros((1, 2, 16, 1, 16, 64), np.uint16))
    at = 0
    for n in (60, 1, 9):
        tape.label = f"{kind.name}, n = {n}"
        batch = Batch.of([(list(range(n)), at, [4, 0, 9, 2, 7])], [0, n - 1])
        run(graph, batch, cache, vocab)
        at += n


def record_gated_graph(tape: Tape, kind: TensorType) -> None:
    """A layer of another family: RMS norms, queries, keys and values apart, rotated, and a gate."""
    dim, hidden, vocab, exact = 256, 512, 70, kind in (TensorType.F32, TensorType.F16)
    graph, weight = ops.Graph(), random(dim, seed=1)
    angles = np.outer(np.arange(80), 100.0 ** -np.arange(0, 1, 1 / 32))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def linear(m: int, k: int, x: int, residual: int | None = None) -> int:
        w = ops.pack(random_tensor(kind, m, k, seed=x))
        return graph.linear(w, x, None, 0, residual)

    x = graph.embed(ops.pack(random_tensor(kind, vocab, dim)), None)
    normed = graph.rms_norm(x, weight, 1e-5)
    qkv = graph.concat(*(linear(m, dim, normed) for m in (dim, 128, 128)))
    mixed = graph.attention(graph.rotate(qkv, 4, 2, table), 4, 2, not exact)
    x = linear(dim, dim, mixed, residual=x)
    normed = graph.rms_norm(x, weight, 1e-5)
    gate, up = linear(hidden, dim, normed), linear(hidden, dim, normed)
    x = linear(dim, hidden, graph.gated(gate, up, ops.ACTIVATIONS["silu"]), residual=x)
    linear(vocab, dim, graph.rms_norm(graph.select(x), weight, 1e-5))
    shape = (1, 1, 16, 2)
    cache = np.zeros((*shape, 64, 16), np.uint16), np.zeros((*shape, 16, 64), np.uint16)
    for at, n in ((0, 9), (9, 1)):
        tape.label = f"{kind.name}, gated, n = {n}"
        run(graph, Batch.of([(list(range(n)), at, [4])], [0, n - 1]), cache, vocab)


def run(graph: ops.Graph, batch: Batch, cache: tuple[np.ndarray, np.ndarray], vocab: int) -> None:
    places = batch.positions, batch.row_starts, batch.block_tables
    graph.run(batch.tokens, *places, batch.logit_rows, *cache, np.empty((2, vocab), np.float32))


LONG = '''"""Shapes: their areas, and what they are made of."""

from __future__ import annotations

import math


class Circle:
    def __init__(self, radius: float) -> None:
        self.radius = radius

    def area(self) -> float:
'''


def record_pocket(tape: Tape) -> None:
    """The model in the package: 16 tokens after a short prompt, and after a long one."""
    llm = LLM(n_ctx=256, n_parallel=1)
    assert len(llm.tokenize(LONG)) > 60
    for prompt in ("def fibonacci(", LONG):
        tape.label = f"Pocket, {prompt[:12]!r}"
        assert llm.generate(prompt, max_tokens=16, ignore_eos=True).text


def record_limits(tape: Tape) -> None:
    for kind in range(3):
        tape.label = str(kind)
        tape.peak(kind, 0.0)
    memory = tape.Memory(1 << 20, 0x1EADBEEF12345678)
    memory.read(1)
