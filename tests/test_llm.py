"""The text facade, over a small real model (random weights, 1,024 tokens, context 512)."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import starcoder
from starcoder import (
    LLM,
    FormatError,
    GenerationOptions,
    InputError,
    LogitsError,
    MemoryLimitError,
)
from starcoder.core import ops
from starcoder.core.tensor import TensorType
from starcoder.model import models
from starcoder.model.models import Recorded
from tests import reference as twins
from tests.helpers.gguf import gguf_tensors, write_gguf
from tests.helpers.tiny import TinyModel

PROMPTS = ["def fibonacci(n):\n", "class A:", "x = [1, 2, 3]\nfor y in x:\n    print(", "{"]
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def path(data: Path) -> Path:
    return data / "gpt_bigcode-q4_0.gguf"


@pytest.fixture(scope="module")
def llm(path: Path) -> LLM:
    return LLM(path)


def n_free(llm: LLM) -> int:
    """Cache blocks that nobody holds after a step, which ends what was cancelled."""
    llm.generate([0], max_tokens=1)
    stats = llm.stats()
    return stats.n_free_blocks + stats.n_idle_blocks


# Answers -------------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_the_reference_implementation(oracle: Path) -> None:
    about = json.loads((oracle / "about.json").read_text())
    n = len(about["greedy"])
    for prompt in (about["ids"], about["text"]):
        completion = LLM(oracle / "f32.gguf").generate(prompt, max_tokens=n, heal=False)
        assert list(completion.tokens) == about["greedy"]
        assert completion.prompt_tokens == len(about["ids"])


def test_a_completion_says_what_was_generated(llm: LLM) -> None:
    started = time.perf_counter()
    completion = llm.generate("def f(", max_tokens=20, heal=False)
    all_ms = (time.perf_counter() - started) * 1e3
    assert (len(completion.tokens), completion.finish_reason) == (20, "length")
    assert completion.text == llm.detokenize(completion.tokens)
    assert completion.prompt_tokens == len(llm.tokenize("def f("))
    t = completion.timings
    assert t.prompt_ms + t.predict_ms + t.sample_ms <= all_ms
    assert t.prompt_per_second == pytest.approx(completion.prompt_tokens / t.prompt_ms * 1e3)
    assert t.predict_per_second == pytest.approx(19 / t.predict_ms * 1e3)


def test_options_made_once_are_the_keywords_of_a_method(llm: LLM) -> None:
    options = GenerationOptions(max_tokens=9, **SAMPLED)
    alone = llm.generate("def f(", max_tokens=9, **SAMPLED)
    assert llm.generate("def f(", **options).tokens == alone.tokens
    with pytest.raises(KeyError):
        options["tempreture"]


def test_a_list_of_prompts_gives_what_each_gives_alone(llm: LLM) -> None:
    together = llm.generate(PROMPTS, max_tokens=30, **SAMPLED)
    for i, prompt in enumerate(PROMPTS):
        alone = llm.generate(prompt, max_tokens=30, temperature=1.0, seed=5 + i)
        assert together[i].tokens == alone.tokens
    assert llm.generate([llm.tokenize(p) for p in PROMPTS], max_tokens=3)[1].prompt_tokens > 1
    nobody: list[str] = []
    assert llm.generate(nobody) == []


def test_more_prompts_than_fit_the_cache_wait_their_turn(path: Path) -> None:
    small = LLM(path, n_ctx=64, n_parallel=1)
    prompts = PROMPTS * 3
    expected = [small.generate(prompt, max_tokens=40).tokens for prompt in prompts]
    assert [c.tokens for c in small.generate(prompts, max_tokens=40)] == expected


def test_one_answer_whatever_the_batch_size_and_the_threads(path: Path, llm: LLM) -> None:
    expected = [c.tokens for c in llm.generate(PROMPTS, max_tokens=25, **SAMPLED)]
    for n_batch, n_threads in [(1, 2), (7, 1), (512, 3)]:
        other = LLM(path, n_batch=n_batch, n_threads=n_threads)
        assert [c.tokens for c in other.generate(PROMPTS, max_tokens=25, **SAMPLED)] == expected


def test_logits_come_for_every_position_to_the_same_bit_in_chunks(path: Path, llm: LLM) -> None:
    tokens = llm.tokenize(PROMPTS[2] * 5)
    whole = llm.logits(tokens)
    assert whole.shape == (len(tokens), 1024)
    assert whole.dtype == np.float32
    assert np.array_equal(LLM(path, n_batch=7).logits(tokens), whole)
    assert np.array_equal(llm.logits(tokens[:9]), whole[:9])
    assert llm.generate(tokens, max_tokens=1).tokens == (int(whole[-1].argmax()),)


def test_the_end_token_stops_unless_ignored(llm: LLM) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "max_tokens": 400}
    seed = next(
        seed
        for seed in range(100)
        if llm.generate("def ", seed=seed, **options).finish_reason == "stop"
    )
    stopped = llm.generate("def ", seed=seed, **options)
    longer = llm.generate("def ", seed=seed, ignore_eos=True, **options)
    n = len(stopped.tokens)
    assert 0 not in stopped.tokens
    assert longer.tokens[: n + 1] == (*stopped.tokens, 0)
    assert "<|endoftext|>" in longer.text
    pieces = list(llm.stream("def ", seed=seed, **options))
    assert (pieces[-1].token, pieces[-1].finish_reason) == (None, "stop")


def test_an_end_token_in_the_prompt_is_one_id_and_stops_nothing(llm: LLM) -> None:
    assert llm.tokenize("<|endoftext|>")[0] == 0
    assert len(llm.generate("<|endoftext|>def ", max_tokens=5).tokens) == 5


def test_an_empty_prompt_stands_for_the_token_that_opens_a_document(llm: LLM) -> None:
    assert llm.generate("", max_tokens=5).tokens == llm.generate([0], max_tokens=5).tokens


def test_text_ends_where_the_context_is_full(path: Path) -> None:
    small = LLM(path, n_ctx=16)
    completion = small.generate(list(range(30, 40)))
    assert (len(completion.tokens), completion.finish_reason) == (6, "length")


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([5] * 600, {}, "prompt: found 600 tokens, expected at most 512"),
        ([1024], {}, "token id 1024"),
        ([-1], {}, "token id -1"),
        ("\ud800", {}, "U\\+D800"),
        (5, {}, "int"),
        (["a", 5], {}, "int"),
        ([[1.5]], {}, "whole numbers"),
        ("x", {"max_tokens": -1}, "max_tokens"),
        (b"bytes", {}, "prompt: found bytes, .*decode it"),
        ("x", {"max_tokens": "many"}, "max_tokens"),
        ("x", {"temperature": -1}, "temperature"),
        ("x", {"top_p": 2}, "top_p"),
        ("x", {"seed": -2}, "seed"),
        ("x", {"tempreture": 1}, "option: found 'tempreture', expected one of .*temperature"),
    ],
)
def test_requests_that_cannot_run_are_one_typed_error(
    llm: LLM, prompt: Any, options: Any, message: str
) -> None:
    n = n_free(llm)
    with pytest.raises(InputError, match=message):
        llm.generate(prompt, **options)
    assert n_free(llm) == n


@pytest.mark.parametrize(
    "options",
    [{"n_ctx": 513}, {"n_ctx": 0}, {"n_threads": 0}, {"n_batch": 0}, {"n_parallel": 0}],
)
def test_settings_out_of_bounds_are_named(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        LLM(path, **options)


def test_a_missing_file_is_a_format_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nothing\.gguf"):
        LLM(tmp_path / "nothing.gguf")


def test_bad_logits_and_missing_memory_are_typed_errors(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = n_free(llm)
    forward = Recorded.forward
    nan = lambda self, *args: forward(self, *args) * np.float32("nan")  # noqa: E731
    monkeypatch.setattr(Recorded, "forward", nan)
    with pytest.raises(LogitsError):
        llm.generate(["x", "y"])

    def starved(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Recorded, "forward", starved)
    with pytest.raises(MemoryLimitError, match="-b or n_batch"):
        llm.generate("x")
    monkeypatch.undo()
    gc.collect()
    assert n_free(llm) == n
    assert len(llm.generate("x", max_tokens=3).tokens) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, 32, 40], ids=["query", "key", "value"])
@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.BF16], ids=lambda kind: kind.name)
def test_a_weight_of_attention_that_is_not_finite_is_a_typed_error(
    kind: TensorType, row: int, bad: float, tmp_path: Path, tiny: TinyModel
) -> None:
    tiny.weights["blk.0.attn_qkv.weight"][row, 5] = bad
    tensors = gguf_tensors(tiny)
    for tensor in tensors:
        if len(tensor.shape) == 2 and tensor.name != "position_embd.weight":
            tensor.type = kind
            tensor.data = twins.quantize(tiny.weights[tensor.name], kind).data.tobytes()
    llm = LLM(write_gguf(tmp_path / "bad.gguf", tiny, tensors=tensors))
    assert not np.isfinite(llm.logits(list(range(5, 16)))).any()
    with pytest.raises(LogitsError):
        llm.generate([5, 6, 7], max_tokens=2)


def test_no_memory_while_loading_is_a_typed_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starved(checkpoint: object) -> None:
        raise MemoryError

    monkeypatch.setattr(models, "build", starved)
    with pytest.raises(MemoryLimitError, match=path.name):
        LLM(path)


# Text and facts ------------------------------------------------------------------------------


def test_tokens_and_text_are_each_other(llm: LLM) -> None:
    text = "def größe(x):\n\treturn x  # 2024 ✓"
    assert llm.detokenize(llm.tokenize(text)) == text
    with pytest.raises(InputError, match="4000"):
        llm.detokenize([4000])


def test_facts_say_what_the_model_is(path: Path) -> None:
    facts = LLM(path, n_ctx=100, n_threads=1).facts
    assert (facts.source, facts.type_name, facts.architecture) == (str(path), "q4_0", "gpt_bigcode")
    assert (facts.n_ctx, facts.max_ctx, facts.n_vocab, facts.dim) == (100, 512, 1024, 256)
    assert (facts.n_heads, facts.n_kv_heads, facts.n_layers, facts.n_threads) == (4, 1, 2, 1)
    assert 1_700_000 < facts.n_parameters < 1_900_000
    assert facts.load_ms > 0


def test_facts_say_why_fewer_threads_run_than_were_asked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    facts = LLM(path, n_threads=8).facts
    assert (facts.n_threads, ops.n_threads()) == (1, 1)
    assert facts.threads_note == "of the 8 asked for: affinity to 1 CPU"
    assert LLM(path, n_threads=1).facts.threads_note == ""


def test_the_public_api_is_all_there() -> None:
    assert {name for name in starcoder.__all__ if not hasattr(starcoder, name)} == set()
    assert set(starcoder.__all__) <= set(dir(starcoder))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = starcoder.nonsense
