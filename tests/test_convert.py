"""`starcoder convert` and `starcoder quantize`: any file in, any file out."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from starcoder import LLM, formats
from starcoder.cli import progress
from starcoder.core.tensor import TensorType
from tests.helpers.command import Run
from tests.helpers.gguf import write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import TinyModel


def logits(path: Path) -> np.ndarray:
    return LLM(str(path)).logits(range(100, 140))


# ------------------------------------------------------------------------------------------------
# Round trips


@pytest.mark.parametrize("kind", ["hf", "hf-bin"])
def test_hugging_face_to_gguf_to_legacy_and_back(
    run: Run, oracle: Path, tmp_path: Path, kind: str
) -> None:
    stages = [tmp_path / name for name in ("first.gguf", "legacy.bin", "last.gguf")]
    assert run("convert", str(oracle / kind), str(stages[0]), "--type", "f32").code == 0
    for source, out in pairwise(stages):
        assert run("convert", str(source), str(out)).code == 0
    wanted = formats.read(oracle / "f32.gguf")
    first, _, last = map(formats.read, stages)
    assert first == wanted
    assert dict(last.tensors) == dict(wanted.tensors)
    assert np.array_equal(logits(stages[0]), logits(stages[2]))


def test_one_command_goes_from_a_directory_to_q4_0(run: Run, oracle: Path, tmp_path: Path) -> None:
    out = tmp_path / "q4_0.gguf"
    result = run("convert", str(oracle / "hf"), str(out), "--type", "q4_0")
    assert (result.code, result.out) == (0, "")
    found, wanted = formats.read(out), formats.read(oracle / "q4_0.gguf")
    for name in ("blk.0.ffn_up.weight", "blk.1.attn_qkv.weight"):
        assert found.tensors[name] == wanted.tensors[name]


def test_types_are_kept_unless_asked(run: Run, data: Path, tmp_path: Path) -> None:
    source, out = data / "gpt_bigcode-q4_0.gguf", tmp_path / "out.gguf"
    assert run("convert", str(source), str(out)).code == 0
    assert formats.read(out) == formats.read(source)


def test_a_directory_becomes_f16(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    write_hf(tmp_path / "hf", tiny)
    assert run("convert", str(tmp_path / "hf"), str(tmp_path / "x.gguf")).code == 0
    assert formats.read(tmp_path / "x.gguf").type_name == "f16"


def test_legacy_to_legacy_and_to_gguf(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    source = str(write_legacy(tmp_path / "in", tiny))
    plain = str(write_gguf(tmp_path / "plain.gguf", tiny))
    assert run("quantize", plain, str(tmp_path / "wanted.bin"), "q4_0").code == 0
    for name, kind in {"x": "ggml", "x.bin": "ggml", "x.gguf": "GGUF"}.items():
        assert run("quantize", source, str(tmp_path / name), "2").code == 0
        found = formats.read(tmp_path / name)
        assert found.label.startswith(kind)
        assert found.tensors["blk.0.ffn_up.weight"].type is TensorType.Q4_0
        for part in ("attn_qkv.weight", "attn_qkv.bias", "ffn_down.weight"):
            wanted = formats.read(tmp_path / "wanted.bin").tensors[f"blk.1.{part}"]
            assert found.tensors[f"blk.1.{part}"] == wanted


def test_in_and_out_may_be_the_same_file(run: Run, data: Path, tmp_path: Path) -> None:
    both, apart = tmp_path / "both.gguf", tmp_path / "apart.gguf"
    shutil.copy(data / "gpt_bigcode-q4_0.gguf", both)
    assert run("quantize", str(both), str(apart), "q8_0").code == 0
    assert run("quantize", str(both), str(both), "q8_0").code == 0
    assert formats.read(both) == formats.read(apart)


def test_the_same_input_gives_the_same_bytes(run: Run, data: Path, tmp_path: Path) -> None:
    source = str(data / "gpt_bigcode-q4_0.gguf")
    for n in ("1", "2", "3"):
        assert run("quantize", source, str(tmp_path / n), "q5_1", "-t", n).code == 0
    files = {(tmp_path / n).read_bytes() for n in ("1", "2", "3")}
    assert len(files) == 1


# ------------------------------------------------------------------------------------------------
# What is said


def test_sizes_are_told_as_ggml_tells_them(run: Run, tiny: TinyModel, tmp_path: Path) -> None:
    source, out = write_gguf(tmp_path / "in.gguf", tiny), tmp_path / "out.gguf"
    result = run("quantize", str(source), str(out), "q4_0")
    n_mb = out.stat().st_size / 2**20
    assert f"quant size = {n_mb:.2f} MB | q4_0" in result.err
    assert f"model size = {formats.read(source).nbytes / 2**20:.2f} MB | f32" in result.err
    assert result.out == ""


def test_what_is_lost_is_said(run: Run, data: Path, tmp_path: Path) -> None:
    source = str(data / "gpt_bigcode-q4_0.gguf")
    result = run("quantize", source, str(tmp_path / "x.gguf"), "q8_0")
    assert "warning: the weights were already rounded to q4_0" in result.err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("quantize", "IN", "out.gguf", "q9"), "expected f32 f16"),
        (("quantize", "IN", "out.gguf", "q4_0", "--tensor-type", "x"), "PATTERN=TYPE"),
        (("quantize", "IN", "out.gguf", "q4_0", "--output-type", "q4_k_m"), "did you mean q4_k?"),
        (("quantize", "IN", "out.gguf", "q4_0", "-t", "0"), "--threads"),
        (("quantize", "IN", "no/out.gguf", "q4_0"), "no folder no,"),
        (("quantize", "missing.gguf", "out.gguf", "q4_0"), "no such file"),
        (("quantize", "IN", "out.bin", "q4_k_m"), "legacy file"),
        (("convert", "IN", "out.xyz"), "--format gguf"),
        (("convert", "IN", "out.gguf", "--format", "onnx"), "gguf or ggml"),
        (("convert", "IN", "out.bin", "--type", "bf16"), "GGUF file instead"),
        (("convert", "IN", "out.gguf", "--revision", "main"), "--revision is for Hub names"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    run: Run,
    tiny: TinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "IN", tiny)
    result = run(*args)
    assert result.code == 2
    assert reason in result.err.splitlines()[-1]
    assert result.err.splitlines()[-1].startswith("starcoder: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["IN"]


def test_progress_is_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("starcoder.cli.progress.time.monotonic", lambda: now)
    with progress.Progress("task") as bar:
        bar.start(1000_000_000)
        for _ in range(100):
            now += 0.2
            bar.advance(10_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "task: 250 of 1000 MB, 50 MB/s, 15 s left"
    assert len(lines) <= 4


def test_progress_is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.Progress("task") as bar:
        bar.start(1000_000)
        bar.advance(1000_000)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "task" in captured.err
    assert "1.0/1.0 MB" in captured.err


# ------------------------------------------------------------------------------------------------


def test_llama_cpp_writes_the_same_text(run: Run, oracle: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    import json

    about = json.loads((oracle / "about.json").read_text())
    out = tmp_path / "f32.gguf"
    assert run("convert", str(oracle / "hf"), str(out), "--type", "f32").code == 0
    model = llama_cpp.Llama(str(out), n_ctx=256, verbose=False)
    tokens = model.generate(about["ids"], temp=0.0, top_k=1, repeat_penalty=1.0)
    assert [next(tokens) for _ in about["greedy"]] == about["greedy"]
