"""Options for single tensors either change one or say why they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from starcoder import formats
from starcoder.core.tensor import TensorType
from tests.helpers.command import Run
from tests.helpers.gguf import write_gguf
from tests.helpers.tiny import make_tiny


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("tied") / "in.gguf", make_tiny())


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("untied") / "in.gguf", make_tiny(tied=False))


@pytest.mark.parametrize(
    ("options", "where", "reason"),
    [
        ("--tensor-type no_such=q8_0", "no_such=q8_0", "no tensor of such a name"),
        ("--tensor-type blk.9.ffn=q8_0", "blk.9.ffn=q8_0", "starcoder inspect shows the names"),
        ("--tensor-type FFN_UP=q8_0", "FFN_UP=q8_0", "no tensor of such a name"),
        ("--tensor-type norm=f16", "norm=f16", "found vectors alone, such as"),
        (
            "--tensor-type ffn_up.bias=q8_0",
            "ffn_up.bias=q8_0",
            "found vectors alone, such as blk.0",
        ),
        ("--tensor-type position_embd=q6_k", "position_embd=q6_k", "f32, f16 or bf16 for these"),
        (
            "--tensor-type ffn=q8_0 --tensor-type ffn_up=q5_1",
            "ffn_up=q5_1",
            "found blk.0.ffn_up.weight, which an option before it names",
        ),
        (
            "--embedding-type f16 --tensor-type token_embd=q8_0",
            "token_embd=q8_0",
            "found token_embd.weight, which an option before it names",
        ),
        (
            "--output-type f16 --embedding-type f32",
            "--embedding-type",
            "found a model whose output matrix is its embedding",
        ),
    ],
)
def test_an_option_that_changes_no_tensor_is_named(
    run: Run, tied: Path, tmp_path: Path, options: str, where: str, reason: str
) -> None:
    result = run("quantize", str(tied), str(tmp_path / "x.gguf"), "q4_0", *options.split(" "))
    last = result.err.splitlines()[-1]
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"{where}: " in last
    assert reason in last
    assert not list(tmp_path.iterdir())


def test_options_that_change_something_are_taken(
    run: Run, tied: Path, untied: Path, tmp_path: Path
) -> None:
    def types(source: Path, *options: str) -> dict[str, TensorType]:
        result = run("quantize", str(source), str(tmp_path / "x.gguf"), "q4_0", *options)
        assert result.code == 0, result.err
        return {name: t.type for name, t in formats.read(tmp_path / "x.gguf").tensors.items()}

    both = ("--output-type", "f16", "--embedding-type", "f16")  # for scripts over many models
    assert types(tied, *both)["token_embd.weight"] is TensorType.F16
    found = types(untied, "--output-type", "f32", "--embedding-type", "q8_0")
    assert found["output.weight"] is TensorType.F32
    assert found["token_embd.weight"] is TensorType.Q8_0
    found = types(tied, "--tensor-type", "embd=q8_0")  # of two that fit, one can be so
    assert found["token_embd.weight"] is TensorType.Q8_0
    found = types(tied, "--tensor-type", "blk.0=q8_0", "--tensor-type", "ffn_up=q5_1")
    assert found["blk.0.ffn_up.weight"] is TensorType.Q8_0
    assert found["blk.1.ffn_up.weight"] is TensorType.Q5_1
    assert types(tied, "--tensor-type", "ffn_up=q4_0")["blk.0.ffn_up.weight"] is TensorType.Q4_0
    zero = types(tied, "--tensor-type", "ffn_up=f32")
    assert zero["blk.0.ffn_up.weight"] is TensorType.F32


def test_unknown_types_are_one_line(run: Run, tied: Path, tmp_path: Path) -> None:
    for options in (["--output-type", "q9"], ["--tensor-type", "ffn=q9"]):
        result = run("quantize", str(tied), str(tmp_path / "x.gguf"), "q4_0", *options)
        assert result.code == 2
        assert "found 'q9', expected f32" in result.err
