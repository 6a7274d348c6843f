"""The operations against their slow twins, bit by bit where the bits are promised.

On every instruction set: products, norms, gates, rotary positions. Beside this file: weights on
their way in, attention, what is not finite, and the bounds of memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from starcoder.core import ops
from starcoder.core.batch import Batch
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import InputError
from tests import reference
from tests.helpers import operations
from tests.helpers.arrays import assert_close, columns, random
from tests.helpers.weights import SCALES, random_tensor

ISAS = ops.available_isas()
TYPES = list(TensorType)
pytestmark = pytest.mark.usefixtures("core_restored")


# ---- products ------------------------------------------------------------------------------------


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


# ---- norms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 5, 16, 40, 768, 2049])
def test_layer_norm_equals_the_reference(dim: int, isa: str) -> None:
    x, weight, bias = random(9, dim) * 3 + 1, random(dim, seed=2), random(dim, seed=3)
    found = operations.layer_norm(x, weight, bias, 1e-5)
    assert_close(found, reference.layer_norm(x, weight, bias, 1e-5))
    assert np.array_equal(operations.layer_norm(x[3:4], weight, bias, 1e-5), found[3:4])


@pytest.mark.parametrize("dim", [1, 5, 16, 40, 768, 2049])
def test_rms_norm_has_the_bits_of_the_reference(dim: int, isa: str) -> None:
    x, weight = random(9, dim) * 3 + 1, random(dim, seed=2)
    found = operations.rms_norm(x, weight, 1e-5)
    assert np.array_equal(found, reference.rms_norm(x, weight, 1e-5))
    assert np.array_equal(operations.rms_norm(x[3:4], weight, 1e-5), found[3:4])


# ---- gates, rotary positions ---------------------------------------------------------------------


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


# ---- where it runs -------------------------------------------------------------------------------


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
