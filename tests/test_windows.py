"""What is left of a prompt where there is no time for all of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from starcoder.model.vocab import Vocab
from starcoder.text.windows import PromptWindows

NAMES = (b"a", b"b\n", b"c", b"<fim_prefix>", b"<fim_suffix>", b"<fim_middle>", b"<file>")
A, LINE, C, PREFIX, SUFFIX, MIDDLE, FILE = range(7)
VOCAB = Vocab(NAMES, np.empty((0, 2), np.int32), frozenset({PREFIX, SUFFIX, MIDDLE, FILE}), None)


def windows(ids: list[int]) -> list[list[int]]:
    made = PromptWindows(ids, VOCAB)
    return [made.window(i) for i in range(len(made.lengths))]


def test_the_windows_of_a_text_are_its_last_lines() -> None:
    ids = [A, LINE, A, C, LINE, A]
    assert windows(ids) == [[A], [A, C, LINE, A], ids]


def test_a_text_of_one_line_has_one_window() -> None:
    assert windows([A, C, A]) == [[A, C, A]]
    assert windows([A, C, LINE]) == [[A, C, LINE]]


def test_special_tokens_stay() -> None:
    ids = [FILE, A, LINE, FILE, C, LINE, A]
    assert windows(ids)[0] == [FILE, FILE, A]


def test_text_around_a_hole_goes_from_its_far_ends_in_whole_lines() -> None:
    before, behind = [A, LINE] * 6, [C, LINE] * 2
    found = windows([PREFIX, *before, A, SUFFIX, *behind, MIDDLE])
    assert found[0] == [PREFIX, A, SUFFIX, MIDDLE]
    assert [PREFIX, *before[-6:], A, SUFFIX, C, LINE, MIDDLE] in found
    assert found[-1] == [PREFIX, *before, A, SUFFIX, *behind, MIDDLE]


def test_the_order_with_the_suffix_first_keeps_the_same_text() -> None:
    before, behind = [A, LINE] * 6, [C, LINE] * 2
    found = windows([PREFIX, SUFFIX, *behind, MIDDLE, *before, A])
    assert [PREFIX, SUFFIX, C, LINE, MIDDLE, *before[-6:], A] in found


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_windows_grow_to_the_whole_prompt_and_have_the_length_that_they_say(ids: list[int]) -> None:
    made = PromptWindows(ids, VOCAB)
    found = [made.window(i) for i in range(len(made.lengths))]
    assert [len(one) for one in found] == made.lengths
    assert made.lengths == sorted(set(made.lengths))
    assert found[-1] == ids
    special = [token for token in ids if token >= PREFIX]
    assert all([token for token in one if token >= PREFIX] == special for one in found)
