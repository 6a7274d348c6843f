"""Batches: what they hold, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from starcoder.batch import BLOCK_LEN, Batch

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


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("positions", [0], "one position per token"),
        ("block_tables", [[0]], "one block table per sequence"),
        ("row_starts", [0, 3, 3, 20], "rise from 0 to 20"),
        ("row_starts", [1, 3, 4, 20], "rise from 0 to 20"),
        ("row_starts", [0, 3, 4, 19], "rise from 0 to 20"),
        ("block_tables", [[4], [0], [9]], "beyond its block table"),
        ("logit_rows", [-1], "lie in 0 to 19"),
        ("logit_rows", [20], "lie in 0 to 19"),
    ],
)
def test_arrays_that_do_not_fit(name: str, numbers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RAGGED, **{name: np.array(numbers, np.int32)})


def test_a_table_too_short_for_its_tokens() -> None:
    with pytest.raises(ValueError, match="beyond its block table"):
        Batch.of([([1], BLOCK_LEN, [3])], [0])
