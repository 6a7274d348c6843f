"""Batches: what they hold, and which ones the core refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.core.batch import BLOCK_LEN, Batch
from starcoder.model import models
from starcoder.model.kv_cache import KVCache
from starcoder.model.models import Model

# A prompt of three tokens, one more token of a longer text, and a chunk that ends with its block.
RAGGED = Batch.of(
    [
        ([7, 8, 9], 0, [4, 5, 6]),
        ([1], 2 * BLOCK_LEN, [0, 1, 2, 3]),
        ([2] * BLOCK_LEN, 0, [9]),
    ],
    [2, 3],
)


def test_tokens_stand_one_after_the_other() -> None:
    assert RAGGED.tokens.tolist() == [7, 8, 9, 1] + [2] * BLOCK_LEN
    assert RAGGED.positions.tolist() == [0, 1, 2, 2 * BLOCK_LEN, *range(BLOCK_LEN)]
    assert RAGGED.row_starts.tolist() == [0, 3, 4, 4 + BLOCK_LEN]
    assert RAGGED.logit_rows.tolist() == [2, 3]


def test_block_tables_end_where_positions_do() -> None:
    assert RAGGED.block_tables.tolist() == [[4, 0, 0], [0, 1, 2], [9, 0, 0]]


def test_all_are_what_the_core_takes() -> None:
    for name in Batch.__slots__:
        array = getattr(RAGGED, name)
        assert array.dtype == np.int32, name
        assert array.flags.c_contiguous, name


def test_logits_of_nobody() -> None:
    assert Batch.of([([1], 0, [0])], []).logit_rows.shape == (0,)


@pytest.fixture(scope="module")
def model(data: Path) -> Model:
    return models.build(formats.read(data / "gpt_bigcode-q4_0.gguf"))


def test_the_core_takes_a_ragged_batch(model: Model) -> None:
    assert model.forward(RAGGED, KVCache(model.config, 16)).shape == (2, model.config.n_vocab)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("tokens", [1 << 20] * 20),
        ("tokens", [-1] * 20),
        ("positions", [0]),
        ("positions", [-1] * 20),
        ("positions", [3 * BLOCK_LEN] * 20),  # beyond the block table
        ("row_starts", [0, 3, 2, 20]),
        ("row_starts", [1, 3, 4, 20]),
        ("row_starts", [0, 3, 4, 19]),
        ("row_starts", [0, 20]),
        ("block_tables", [[0]]),
        ("block_tables", [[4, 0, 0], [0, 1, 16], [9, 0, 0]]),  # beyond the cache
        ("block_tables", [[4, 0, 0], [0, -1, 2], [9, 0, 0]]),
        ("logit_rows", [0, -1]),
        ("logit_rows", [0, 20]),
    ],
)
def test_the_core_refuses_arrays_that_do_not_fit(
    model: Model, name: str, numbers: list[Any]
) -> None:
    batch = replace(RAGGED, **{name: np.array(numbers, np.int32)})
    with pytest.raises(ValueError, match=r"^(graph|attention): "):
        model.forward(batch, KVCache(model.config, 16))
