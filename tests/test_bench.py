"""`starcoder bench`: what it says about small models. No test asserts a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from starcoder import formats, pocket
from starcoder.bench import synthetic
from starcoder.bench.result import Pairs, Result, Speed
from starcoder.bench.runner import Runner, Task, Work
from starcoder.convert import quantize
from starcoder.convert.mix import find_mix
from starcoder.core import limits, ops
from starcoder.core.limits import Limits
from starcoder.core.tensor import TensorType
from starcoder.model import models
from starcoder.model.architecture import Role
from starcoder.model.checkpoint import Checkpoint
from starcoder.model.kv_cache import RUN_LEN
from tests.helpers.command import Run

LIMITS = Limits(read_gbps=20, int8_gmacs=300, bf16_gmacs=150, f32_gmacs=80)
SHORT = ["-p", "20", "-n", "3", "-r", "2"]
REQUIRED = "prompt_tps decode_tps prompt_limit_share decode_limit_share"
REQUIRED += " read_gbps int8_gmacs bf16_gmacs f32_gmacs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, core_restored: None) -> None:
    """Limits of a moment, and a small model of the family."""
    monkeypatch.setattr(limits, "_READ_BYTES", 1 << 20)
    monkeypatch.setattr(limits, "_SECONDS", 0.001)
    monkeypatch.setitem(synthetic.SHAPES, "small", (256, 4, 2, 64))
    monkeypatch.setattr(synthetic, "_N_VOCAB", 512)


@pytest.fixture
def model(data: Path) -> str:
    return str(data / "gpt_bigcode-q4_0.gguf")


def small(type_name: str = "q4_0") -> Checkpoint:
    return synthetic.checkpoint(synthetic.config_of("small"), find_mix(type_name))


# What comes out ------------------------------------------------------------------------------


def test_json_is_one_object_with_speeds_shares_and_limits(run: Run, model: str) -> None:
    result = run("bench", "-m", model, *SHORT, "--json")
    answer = json.loads(result.out)
    assert result.code == 0
    assert answer.keys() >= set(REQUIRED.split())
    assert all(answer[key] > 0 for key in REQUIRED.split())
    assert 0 < answer["prompt_limit_share"] <= 1
    assert 0 < answer["decode_limit_share"] <= 1
    assert (answer["n_prompt"], answer["n_decode"], answer["depth"]) == (20, 3, 0)
    for when in ("before", "after"):
        assert answer[f"limits_{when}"]["read_gbps"] > 0
        assert answer["int8_gmacs"] >= answer[f"limits_{when}"]["int8_gmacs"] > 0


def test_without_a_model_the_one_in_the_package_is_measured(run: Run) -> None:
    found, expected = (
        json.loads(run("bench", *choice, *SHORT, "--json").out)
        for choice in ([], ["-m", str(pocket.PATH)])
    )
    same = ("model", "type", "weights_mb")
    assert [found[key] for key in same] == [expected[key] for key in same]


def test_the_table_has_a_row_for_each_run_and_progress_is_on_stderr(run: Run, model: str) -> None:
    result = run("bench", "-m", model, *SHORT, "-t", "1")
    for words in ("prompt 20", "decode 3", "% of int8", "% of reading", "GB/s", "1 thread ("):
        assert words in result.out
    assert "bench: " in result.err
    assert "bench: " not in result.out


def test_several_types_of_a_shape_are_measured_in_turn(run: Run) -> None:
    shape = ["bench", "--shape", "small", "--type", "q4_0,bf16,f16"]
    answer = json.loads(run(*shape, *SHORT, "--json").out)
    assert [r["type"] for r in answer["results"]] == ["q4_0", "bf16", "f16"]
    assert answer["prompt_tps"] == answer["results"][0]["prompt_tps"]
    text = run(*shape, *SHORT).out
    assert text.count("prompt 20") == 3
    assert "% of f32" in text


def test_depth_and_batch_are_measured(run: Run) -> None:
    args = ["bench", "--shape", "small", *SHORT, "--depth", "33", "--batch", "3"]
    answer = json.loads(run(*args, "--json").out)
    low, high = answer["batch_ratio_range"]
    assert low <= answer["batch_ratio"] <= high
    assert answer["alone_tps"] > 0
    assert "batch of 3 to one sequence" in run(*args).out


# Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", "0"], "'-p'"),
        (["-n", "-3"], "'-n'"),
        (["--batch", "0"], "'--batch'"),
        (["-r", "0"], "'-r'"),
        (["--depth", "-1"], "'--depth'"),
        (["--shape", "small", "--depth", "60"], "found 80 tokens with what follows, expected at"),
        (["--shape", "large"], "--shape: found 'large', expected tiny_starcoder_py"),
        (["--shape", "small", "--type", "q4_0,q9"], "type: found 'q9'"),
        (["--shape", "small", "-m", "x"], "-m and --shape: found both"),
        (["--type", "q4_0"], "--type: no --shape"),
        (["-m", "/no/such/model"], "no such file"),
        (["--plot", "x.svg"], "expected python -m bench.roofline in the repository"),
        (["--against", "llama-cpp"], "expected python -m bench.against in the repository"),
        (["--rival-python", "x"], "--rival-python: found an option that has moved"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.setattr(limits, "measure", lambda: pytest.fail("measured"))
    result = run("bench", *SHORT, *args)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert message in result.err


# The synthetic model -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q4_0", "q4_k_m", "q8_0", "q2_k", "bf16", "f16", "f32"])
def test_a_synthetic_model_has_the_types_of_a_quantized_file(name: str) -> None:
    mix = find_mix(name)
    source, made = small("f32"), small(name)
    types, _ = quantize.plan(source, quantize.Choice(mix=mix))
    assert {n: t.type for n, t in made.tensors.items()} == types
    assert {n: t.shape for n, t in made.tensors.items()} == {
        n: t.shape for n, t in source.tensors.items()
    }
    assert all(ops.first_non_finite(tensor) is None for tensor in made.tensors.values())


def test_a_synthetic_model_can_be_written_and_read_again(tmp_path: Path) -> None:
    made = small()
    formats.write(tmp_path / "model.gguf", made)
    again = formats.read(tmp_path / "model.gguf")
    assert again.config == made.config
    assert again.vocab == made.vocab
    assert again.tensors == made.tensors


def test_layers_of_a_synthetic_model_share_their_weights() -> None:
    tensors = small().tensors
    first, second = (tensors[f"blk.{i}.ffn_up.weight"].data for i in range(2))
    assert np.shares_memory(first, second)


def test_the_shapes_are_those_of_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_N_VOCAB", 49152)
    sizes = {"santacoder": 1.12e9, "starcoderbase-1b": 1.14e9, "starcoderbase-3b": 3.04e9}
    sizes |= {"starcoderbase-7b": 7.3e9, "starcoder": 15.5e9, "tiny_starcoder_py": 0.164e9}
    for name, size in sizes.items():
        config = synthetic.config_of(name)
        specs = models.ARCHITECTURES["gpt_bigcode"].specs(config.n_layers).values()
        shapes = [spec.shape(config) for spec in specs if spec.role is not Role.OUTPUT]
        assert sum(map(np.prod, shapes)) == pytest.approx(size, rel=0.03), name


# What is counted -----------------------------------------------------------------------------


def test_work_counts_matrices_weights_and_the_cache() -> None:
    checkpoint = small("f16")
    runner = Runner(checkpoint, Task(n_prompt=10, n_decode=4, depth=8, batch=2))
    c, tokens = runner.config, 10
    layer = c.dim * (c.dim + 2 * c.head_dim) + c.dim * c.dim + 2 * c.dim * c.hidden_dim
    last_tail = c.dim * c.dim + 2 * c.dim * c.hidden_dim  # of one token, as the output matrix
    qkv = layer - last_tail
    expected = tokens * (layer + qkv) + last_tail + c.n_vocab * c.dim
    assert runner.prompt_work.multiply_adds == expected
    position = 2 * c.n_layers * c.head_dim * 2  # bytes of keys and values, f16
    assert runner.prompt_work.nbytes == runner.read_bytes + 18 * position
    work = runner.decode_work(2)
    assert work.tokens == 8
    assert work.multiply_adds == 8 * (2 * layer + c.n_vocab * c.dim)
    assert work.nbytes == 4 * runner.read_bytes + 2 * (9 + 10 + 11 + 12) * position


def test_of_an_embedding_that_is_not_the_output_matrix_nothing_is_counted() -> None:
    tied = small("f16")
    own = {"output.weight": tied.tensors["token_embd.weight"]}
    untied = replace(tied, tensors={**tied.tensors, **own})
    task = Task(n_prompt=1, n_decode=1)
    assert Runner(untied, task).read_bytes == Runner(tied, task).read_bytes


def test_what_lies_before_the_depth_is_the_same_for_every_sequence() -> None:
    runner = Runner(small(), Task(n_prompt=4, n_decode=4, depth=40, batch=3))
    for store in (runner._cache.keys, runner._cache.values):
        places = (divmod(np.array(table), RUN_LEN) for table in runner._tables)
        first, *others = (store[run, :, block] for run, block in places)
        assert first[:2].any()
        assert len(others) == 2
        assert all(np.array_equal(other, first) for other in others)


def result(type_name: str, kind: TensorType, speed: float = 1.0) -> Result:
    prompt, decode = Work(512, 5e11, 1e9), Work(64, 6e10, 5e10)
    return Result(
        name="a <model>",
        type_name=type_name,
        type=kind,
        task=Task(),
        weights_bytes=1e9,
        before=LIMITS,
        after=replace(LIMITS, int8_gmacs=LIMITS.int8_gmacs / 2),
        reads=(LIMITS.read_gbps, LIMITS.read_gbps),
        prompt=Speed(prompt, (3 / speed,)),
        decode=Speed(decode, (4 / speed,)),
    )


def test_a_ratio_is_that_of_pairs() -> None:
    ours = Speed(Work(10, 1, 1), (1.0, 2.0, 4.0))
    theirs = Speed(Work(10, 1, 1), (2.0, 2.0, 12.0))
    pairs = Pairs.of(ours, theirs)
    assert (pairs.median, pairs.spread) == (2.0, (1.0, 3.0))


def test_the_share_of_a_prompt_is_of_the_larger_of_the_peaks_around_the_runs() -> None:
    one = result("q4_0", TensorType.Q4_0)
    assert one.prompt_share == one.prompt.gmacs / LIMITS.int8_gmacs


def test_the_share_of_decoding_is_the_median_of_runs_beside_the_readings_around_each() -> None:
    decode = Speed(Work(64, 6e10, 8e9), (1.0, 0.5, 1.0))  # 8, 16 and 8 GB/s
    one = replace(result("q4_0", TensorType.Q4_0), decode=decode, reads=(9.0, 11.0, 39.0, 41.0))
    assert one.decode_share == 16 / 25  # of 8 / 10, 16 / 25 and 8 / 40
    assert one.as_json()["read_gbps"] == 25
    assert replace(one, reads=(1.0,) * 4).decode_share == 1
