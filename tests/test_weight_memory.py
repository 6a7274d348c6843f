"""Weights that begin with small pages: the same numbers, and huge pages in the end."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from starcoder import _core
from starcoder.core import ops
from starcoder.core.tensor import TensorType
from tests.helpers import operations
from tests.helpers.weights import random_tensor

SHAPE = 2048, 4096  # 32 MB of F32, 4.5 MB of Q4_0
HUGE_KB = 2 << 10
THP = Path("/sys/kernel/mm/transparent_hugepage")


@pytest.fixture
def small_pages() -> Iterator[None]:
    ops.collapse_pages()  # of other tests
    _core.testing.begin_small(True)
    yield
    _core.testing.begin_small(False)
    ops.collapse_pages()


def product(w: ops.Matrix) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((2, SHAPE[1])).astype(np.float32)
    return operations.linear(x, w)


def can_collapse() -> bool:
    if platform.system() != "Linux" or not THP.exists():
        return False
    if "[never]" in (THP / "enabled").read_text():
        return False
    if int((THP / "hpage_pmd_size").read_text()) != HUGE_KB << 10:  # ARM with other pages
        return False
    major, minor = (int(part) for part in platform.release().split(".")[:2])
    return (major, minor) >= (6, 1)


def huge_kb() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("AnonHugePages:")[1].split()[0])


@pytest.mark.parametrize("kind", [TensorType.Q4_0, TensorType.Q6_K, TensorType.BF16])
def test_pages_change_no_number(small_pages: None, kind: TensorType) -> None:
    tensor = random_tensor(kind, *SHAPE)
    small = ops.pack(tensor)
    before = product(small)
    _core.testing.begin_small(False)
    ops.collapse_pages()
    np.testing.assert_array_equal(product(small), before)
    np.testing.assert_array_equal(product(ops.pack(tensor)), before)


def test_collapsing_ends(small_pages: None) -> None:
    weights = [ops.pack(random_tensor(TensorType.F32, *SHAPE)) for _ in range(3)]
    rounds = 0
    while ops.collapse_pages(1e-4):
        rounds += 1
    assert rounds > 1 or not can_collapse()  # little by little
    assert not ops.collapse_pages(1e-4)
    assert len({product(w).tobytes() for w in weights}) == 1


@pytest.mark.skipif(not can_collapse(), reason="needs MADV_COLLAPSE (Linux 6.1) and huge pages")
def test_small_pages_become_huge(small_pages: None) -> None:
    start = huge_kb()
    weights = ops.pack(random_tensor(TensorType.F32, *SHAPE))
    assert huge_kb() - start < HUGE_KB * 2
    ops.collapse_pages()
    assert huge_kb() - start >= weights.nbytes >> 10


def test_products_while_pages_are_collapsed(small_pages: None) -> None:
    weights = [ops.pack(random_tensor(TensorType.F32, *SHAPE)) for _ in range(3)]
    expected, found = product(weights[0]).tobytes(), set[bytes]()
    running = threading.Thread(target=ops.collapse_pages)
    running.start()
    while running.is_alive():
        found.update(product(w).tobytes() for w in weights)
    running.join()
    found.update(product(w).tobytes() for w in weights)
    assert found == {expected}


def test_weights_let_go_are_not_collapsed(small_pages: None) -> None:
    weights = ops.pack(random_tensor(TensorType.F32, *SHAPE))
    del weights
    assert not ops.collapse_pages()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_packs_while_its_parent_collapses(small_pages: None) -> None:
    weights = [ops.pack(random_tensor(TensorType.F32, *SHAPE)) for _ in range(3)]
    expected = product(weights[0]).tobytes()
    collapsing = threading.Thread(target=ops.collapse_pages)
    collapsing.start()
    child = os.fork()
    if child == 0:
        same = product(ops.pack(random_tensor(TensorType.F32, *SHAPE))).tobytes() == expected
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    collapsing.join()
