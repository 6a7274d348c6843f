"""Arguments from Python: what stands for a value is that value, what does not is one InputError."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, GenerationOptions, InputError, pocket

SAMPLED = {"temperature": 1.0, "max_tokens": 5}


class Index:
    """A whole number of a library that we do not know."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Rude:
    """Whose every conversion, and whose `repr`, fails in its own way."""

    def fail(self, *args: object) -> Any:
        raise RuntimeError("rude")

    __index__ = __float__ = __bool__ = __fspath__ = __repr__ = __eq__ = __lt__ = __iter__ = fail
    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(n_threads=1)


# ------------------------------------------------------------------------------------------------
# What works


@pytest.mark.parametrize("make", [Index, np.uint8, np.int64, np.uint64, lambda n: np.array(n)])
def test_whole_numbers_of_any_kind_are_ints(llm: Any, make: Callable[[int], Any]) -> None:
    options = GenerationOptions(top_k=make(7), repeat_last_n=make(9), seed=make(200))
    assert (options.top_k, options.repeat_last_n, options.seed) == (7, 9, 200)
    assert {type(n) for n in (options.top_k, options.repeat_last_n, options.seed)} == {int}
    found = llm.generate("def f", max_tokens=make(3), temperature=1, top_k=make(7), seed=make(200))
    assert (
        found.tokens == llm.generate("def f", max_tokens=3, temperature=1, top_k=7, seed=200).tokens
    )


@pytest.mark.parametrize(
    "half", [Decimal("0.5"), Fraction(1, 2), np.float32(0.5), np.float16(0.5), np.array(0.5)]
)
def test_numbers_of_any_kind_are_floats(llm: Any, half: Any) -> None:
    options = GenerationOptions(temperature=half, top_p=half, repeat_penalty=half)
    assert options == GenerationOptions(temperature=0.5, top_p=0.5, repeat_penalty=0.5)
    found = (options.temperature, options.top_p, options.repeat_penalty)
    assert {type(x) for x in found} == {float}
    found = llm.generate("x", temperature=half, top_p=half, seed=1, max_tokens=5)
    assert (
        found.tokens == llm.generate("x", temperature=0.5, top_p=0.5, seed=1, max_tokens=5).tokens
    )


def test_an_odd_number_never_harms_other_requests(llm: Any) -> None:
    good = llm.stream("def f", max_tokens=6, ignore_eos=True)
    next(good)
    odd = llm.stream("x", temperature=Decimal("0.5"), top_p=Fraction(1, 3), max_tokens=3)
    assert len(good.drain().tokens) == 6
    odd.close()


def test_a_list_counts_its_seeds_up_beyond_what_a_small_type_holds(llm: Any) -> None:
    together = llm.generate(["x", "x", "x"], seed=np.uint8(254), **SAMPLED)
    alone = [llm.generate("x", seed=254 + i, **SAMPLED).tokens for i in range(3)]
    assert [c.tokens for c in together] == alone
    with pytest.raises(InputError, match="seed: found 18446744073709551616"):
        llm.generate(["x", "x"], seed=np.uint64(2**64 - 1))


def test_settings_of_a_small_type_do_not_wrap_around() -> None:
    make: Any = LLM
    facts = make(n_ctx=np.uint8(200), n_batch=np.uint8(255), n_parallel=Index(3), n_threads=1).facts
    assert (facts.n_ctx, type(facts.n_ctx)) == (200, int)


def test_token_ids_come_in_any_ordered_form(llm: Any) -> None:
    ids = llm.tokenize("def f")
    expected = llm.generate(ids, max_tokens=3).tokens
    for prompt in (tuple(ids), np.array(ids), [Index(i) for i in ids], iter(ids)):
        assert llm.generate(prompt, max_tokens=3).tokens == expected
    for prompts in ([np.array(ids)] * 2, (ids, tuple(ids)), [np.array(ids), "def f"]):
        found = llm.generate(prompts, max_tokens=3, heal=False)
        assert [c.tokens for c in found] == [expected] * 2
    assert llm.detokenize(np.array(ids)) == "def f"
    assert np.array_equal(llm.logits(np.array(ids)), llm.logits(ids))


@pytest.mark.parametrize("flag", [True, 1, np.True_, Index(1)])
def test_flags_may_be_numpys_or_one(llm: Any, flag: Any) -> None:
    assert len(llm.generate("<|endoftext|>", ignore_eos=flag, max_tokens=30).tokens) == 30


def test_a_path_may_be_bytes(tmp_path: Path) -> None:
    link = tmp_path / os.fsdecode(b"m\xff.gguf")
    link.symlink_to(pocket.PATH)
    for path in (os.fsencode(link), os.fsdecode(os.fsencode(link)), link):
        assert LLM(path, n_threads=1).facts.source == str(link)


# ------------------------------------------------------------------------------------------------
# What does not


def kind(value: object) -> str:
    """A name for a test: its text might be an address, or raise."""
    return type(value).__name__


ODD: list[Any] = [
    *(None, "1", b"1", "x", [1], [], {}, (), object(), Rude(), 1j, math.nan, math.inf, -math.inf),
    *(10**400, -(10**400), 10**5000, Decimal("NaN"), Decimal("sNaN"), Decimal("Infinity")),
    *(np.array([1]), np.array([[1, 2]]), np.float64("nan"), float, lambda: 1, "\n" * 999),
]
WHOLE = ["n_threads", "n_ctx", "n_batch", "n_parallel", "kv_memory"]
OPTIONS = ["max_tokens", "temperature", "top_k", "top_p", "repeat_last_n", "repeat_penalty", "seed"]


def is_one_line(error: InputError) -> bool:
    return str(error).isprintable() and len(str(error)) < 250


@pytest.mark.parametrize("value", [*ODD, True, False, 0.5, Fraction(1, 2), Decimal(1)], ids=kind)
@pytest.mark.parametrize("name", WHOLE)
def test_settings_that_are_no_whole_numbers_are_one_line(name: str, value: Any) -> None:
    if value is None and name in ("n_threads", "n_ctx", "kv_memory"):
        return  # the default
    with pytest.raises(InputError, match=f"^{name}: found .*expected a whole number") as caught:
        LLM(**{name: value})
    assert is_one_line(caught.value)


@pytest.mark.parametrize("value", [*ODD, True, False], ids=kind)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_are_no_numbers_are_one_line(llm: Any, name: str, value: Any) -> None:
    if value is None and name == "seed":
        return  # the default
    calls = [llm.generate, llm.stream, lambda prompt, **options: llm.generate([prompt], **options)]
    for call in calls:
        with pytest.raises(InputError, match=f"^{name}: found .*expected ") as caught:
            call("x", **{name: value})
        assert is_one_line(caught.value)
    with pytest.raises(InputError, match=f"^{name}: "):
        GenerationOptions(**{name: value})


@pytest.mark.parametrize("value", [v for v in ODD if v is not None] + [None, 2, 0.0], ids=kind)
def test_flags_that_are_neither_are_one_line(llm: Any, value: Any) -> None:
    with pytest.raises(InputError, match=r"^ignore_eos: found .*expected True or False") as caught:
        llm.generate("x", ignore_eos=value)
    assert is_one_line(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        *(None, 5, 1.5, object(), True),
        *(b"def f", bytearray(b"def f"), memoryview(b"def f"), {5, 6}, {5: 6}, frozenset({5})),
        *({5: 6}.keys(), [1.5], [None], [5, "x"], ["x", 5], [b"def f"], ["x", b"y"], [[5], b"y"]),
        *(
            [{5}],
            ["x", None],
            [[5.0]],
            [True],
            np.array([1.5]),
            np.array([[5]]),
            [[[5]]],
            [[5], [[5]]],
        ),
        *([10**400], [-1], [2**63], np.array([2**63], np.uint64)),
    ],
    ids=kind,
)
def test_prompts_that_are_neither_text_nor_ids_are_one_line(llm: Any, prompt: Any) -> None:
    with pytest.raises(InputError) as caught:
        llm.generate(prompt)
    assert is_one_line(caught.value)
    if not isinstance(prompt, (list, tuple)):
        with pytest.raises(InputError):
            llm.stream(prompt)
        with pytest.raises(InputError):
            llm.logits(prompt)
        with pytest.raises(InputError):
            llm.detokenize(prompt)
    assert llm.generate("x", max_tokens=1).tokens  # nothing is left behind


@pytest.mark.parametrize("raw", [b"def f", bytearray(b"def f"), memoryview(b"def f")])
def test_bytes_are_to_be_decoded(llm: Any, raw: Any) -> None:
    for call in (llm.generate, llm.stream, llm.tokenize, llm.detokenize, llm.logits):
        with pytest.raises(InputError, match=rf"found {type(raw).__name__},.*decode it first"):
            call(raw)
    with pytest.raises(InputError, match="decode it first"):
        llm.generate(["x", raw])


@pytest.mark.parametrize("text", [None, 5, ["a"], b"x", Path("x"), np.array(["x"])])
def test_what_is_no_text_is_not_tokenized(llm: Any, text: Any) -> None:
    with pytest.raises(InputError, match=f"^text: found {type(text).__name__}, expected text"):
        llm.tokenize(text)


@pytest.mark.parametrize("model", [None, 5, 1.5, "", b"", [], Rude(), object(), True])
def test_what_is_no_path_is_no_model(model: Any) -> None:
    with pytest.raises(InputError, match=r"^model: found .*expected a path or a Hub id") as caught:
        LLM(model)
    assert is_one_line(caught.value)
