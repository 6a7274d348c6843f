"""The graph: the bits of its operations one by one, whatever it fuses; and it says what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.tensor import TensorType
from tests import reference
from tests.helpers import operations
from tests.helpers.weights import random_tensor
from tests.reference.graph import Graph as SlowGraph

pytestmark = pytest.mark.usefixtures("core_restored")

DIM, HIDDEN, VOCAB, N_HEADS, N_KV_HEADS, HEAD_DIM = 256, 512, 70, 4, 2, 64
NAMES = {number: name for name, number in ops.ACTIVATIONS.items()}
SILU, GELU = ops.ACTIVATIONS["silu"], ops.ACTIVATIONS["gelu_tanh"]
TYPES = [TensorType.Q4_0, TensorType.Q6_K, TensorType.BF16, TensorType.F32]


class Weights:
    """Matrices by shape and number, packed or not, the same in every graph."""

    def __init__(self, kind: TensorType, pack: Callable[[Any], Any]) -> None:
        self._kind, self._pack = kind, pack

    def matrix(self, m: int, k: int, seed: int, kind: TensorType | None = None) -> Any:
        return self._pack(random_tensor(kind or self._kind, m, k, seed=seed))


def vector(k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(k).astype(np.float32)


def table() -> np.ndarray:
    """Cosines and sines of rotary positions."""
    angles = np.outer(np.arange(80), 100.0 ** -np.arange(0, 1, 2 / HEAD_DIM))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


TABLE = table()


def gated_family(graph: Any, w: Weights) -> None:
    """RMS norms, no biases; queries, keys, values of different types, rotated; and a gate."""
    x = graph.embed(w.matrix(VOCAB, DIM, 1), None)
    for layer in range(2):
        at = 10 * layer
        normed = graph.rms_norm(x, vector(DIM, at), 1e-5)
        kv = N_KV_HEADS * HEAD_DIM
        queries = graph.linear(w.matrix(DIM, DIM, at + 1), normed, None, 0, None)
        keys = graph.linear(w.matrix(kv, DIM, at + 2, TensorType.Q8_0), normed, None, 0, None)
        values = graph.linear(w.matrix(kv, DIM, at + 3, TensorType.F16), normed, None, 0, None)
        qkv = graph.rotate(graph.concat(queries, keys, values), N_HEADS, N_KV_HEADS, TABLE)
        mixed = graph.attention(qkv, N_HEADS, N_KV_HEADS, True)
        if layer:
            x, mixed = graph.select(x), graph.select(mixed)
        x = graph.linear(w.matrix(DIM, DIM, at + 4), mixed, None, 0, x)
        normed = graph.rms_norm(x, vector(DIM, at + 5), 1e-5)
        gate = graph.linear(w.matrix(HIDDEN, DIM, at + 6), normed, None, 0, None)
        up = graph.linear(w.matrix(HIDDEN, DIM, at + 7), normed, None, 0, None)
        x = graph.linear(w.matrix(DIM, HIDDEN, at + 8), graph.gated(gate, up, SILU), None, 0, x)
    graph.linear(w.matrix(VOCAB, DIM, 9), graph.rms_norm(x, vector(DIM), 1e-5), None, 0, None)


def attended(graph: Any, w: Weights, seed: int = 3) -> int:
    """Embeddings of the tokens, and attention over them."""
    x = graph.embed(w.matrix(VOCAB, DIM, seed), np.zeros((80, DIM), np.float32))
    width = (N_HEADS + 2 * N_KV_HEADS) * HEAD_DIM
    qkv = graph.linear(w.matrix(width, DIM, seed + 1), x, vector(width), 0, None)
    mixed: int = graph.attention(qkv, N_HEADS, N_KV_HEADS, True)
    return mixed


def norm_read_twice(graph: Any, w: Weights) -> None:
    """A norm that a product takes, and the next one adds: it cannot be folded."""
    normed = graph.layer_norm(attended(graph, w), vector(DIM), vector(DIM, 2), 1e-5)
    y = graph.linear(w.matrix(DIM, DIM, 6), normed, None, GELU, None)
    graph.linear(w.matrix(DIM, DIM, 7), y, None, 0, normed)


def product_read_twice(graph: Any, w: Weights) -> None:
    """A product that two others take: it stays as it is, and its memory too."""
    y = graph.linear(w.matrix(HIDDEN, DIM, 6), attended(graph, w), None, GELU, None)
    one = graph.linear(w.matrix(DIM, HIDDEN, 7), y, None, 0, None)
    graph.linear(w.matrix(DIM, HIDDEN, 8), y, None, 0, one)


def gate_read_again(graph: Any, w: Weights) -> None:
    """A gate and what it opens, both needed later: neither may be written over."""
    x = attended(graph, w)
    gate = graph.linear(w.matrix(DIM, DIM, 6), x, None, 0, None)
    opened = graph.gated(gate, x, SILU)
    graph.gated(graph.gated(opened, gate, GELU), x, 0)


def its_own_gate(graph: Any, w: Weights) -> None:
    x = attended(graph, w)
    graph.gated(x, x, SILU)


def ends_with_a_norm(graph: Any, w: Weights) -> None:
    graph.rms_norm(attended(graph, w), vector(DIM), 1e-5)


class Case(NamedTuple):
    record: Callable[[Any, Weights], object]
    n_layers: int = 1
    width: int = DIM  # of the result

    def graph(self, kind: TensorType) -> ops.Graph:
        graph = ops.Graph()
        self.record(graph, Weights(kind, ops.pack))
        return graph

    def run(self, graph: Any, sizes: list[int]) -> list[np.ndarray]:
        """Answers to batches of these sizes, one after the other in one text."""
        shape = (1, self.n_layers, 16, N_KV_HEADS)
        keys = np.zeros((*shape, HEAD_DIM, 16), np.uint16)
        values = np.zeros((*shape, 16, HEAD_DIM), np.uint16)
        answers, at = [], 0
        for n in sizes:
            tokens = [(7 * i) % VOCAB for i in range(at, at + n)]
            batch = Batch.of([(tokens, at, [4, 0, 9, 2, 7, 1])], list(range(n)))
            places = batch.positions, batch.row_starts, batch.block_tables
            answers.append(np.full((n, self.width), np.nan, np.float32))
            graph.run(batch.tokens, *places, batch.logit_rows, keys, values, answers[-1])
            at += n
        return answers


GATED = Case(gated_family, n_layers=2, width=VOCAB)
CASES = [
    GATED,
    *map(Case, (norm_read_twice, product_read_twice, gate_read_again)),
    *map(Case, (its_own_gate, ends_with_a_norm)),
]


SIZES = [30, 1, 1, 3, 1, 16]


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.record.__name__)
def test_a_graph_gives_the_bits_of_its_operations_one_by_one(
    case: Case, kind: TensorType, isa: str
) -> None:
    slow = SlowGraph(operations, NAMES)
    case.record(slow, Weights(kind, ops.pack))
    expected = case.run(slow, SIZES)
    graph = case.graph(kind)
    for n_threads in (1, 2, 3):
        ops.set_n_threads(n_threads)
        assert equal(case.run(graph, SIZES), expected)
        assert equal(case.run(graph, SIZES), expected)  # what one run leaves disturbs no other


def test_a_family_with_gates_answers_as_numpy_does() -> None:
    slow = SlowGraph(reference, NAMES)
    gated_family(slow, Weights(TensorType.F32, lambda tensor: tensor))
    expected, found = GATED.run(slow, [9])[0], GATED.run(GATED.graph(TensorType.F32), [9])[0]
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # keys are rounded


def test_every_instruction_set_gives_the_same_bits() -> None:
    for kind in TYPES:
        answers = []
        for name in ops.available_isas():
            ops.use_isa(name)
            answers.append(GATED.run(GATED.graph(kind), SIZES))
        assert all(equal(answer, answers[0]) for answer in answers)


def test_it_says_what_it_fuses() -> None:
    lines = GATED.graph(TensorType.Q4_0).text().splitlines()
    assert lines[0] == "%0 = embed  [70 x 256 Q4_0]  -> 256"
    assert lines[1].endswith("folded into the products that take it")
    assert lines[6] == "%6 = rotate %5  4 heads on 2 of keys and values  -> 512"
    assert lines[12] == "%12 = gated %10 %11 silu  -> 512"
    assert not any("quantized for" in line for line in lines)  # a gate stands in between

    text = Case(norm_read_twice).graph(TensorType.Q4_0).text()
    assert "folded" not in text
    assert "quantized for %5" in text
    text = Case(product_read_twice).graph(TensorType.Q4_0).text()
    assert "quantized for" not in text


def test_what_does_not_fit_is_refused_when_it_is_recorded() -> None:
    w = Weights(TensorType.F32, ops.pack)
    graph = ops.Graph()
    with pytest.raises(ValueError, match="an earlier result"):
        graph.rms_norm(0, vector(DIM), 1e-5)
    x = graph.embed(w.matrix(VOCAB, DIM, 1), None)
    narrow = graph.linear(w.matrix(128, DIM, 2), x, None, 0, None)
    chosen = graph.select(x)
    refusals: list[Callable[[], object]] = [
        lambda: graph.rms_norm(x, vector(DIM - 1), 1e-5),
        lambda: graph.gated(x, narrow, SILU),
        lambda: graph.gated(x, chosen, SILU),
        lambda: graph.gated(x, x, 9),
        lambda: graph.concat(x, narrow, chosen),
        lambda: graph.rotate(x, 2, 1, TABLE[:, :, 1:]),
        lambda: graph.embed(w.matrix(VOCAB, DIM, 1), None),
    ]
    for refused in refusals:
        with pytest.raises(ValueError, match=r"^\w+"):
            refused()


def test_a_position_that_no_table_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="positions below n_positions"):
        GATED.run(GATED.graph(TensorType.F32), [16] * 6)
