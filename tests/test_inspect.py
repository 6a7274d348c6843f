"""`starcoder inspect` shows what a file holds, whatever its format, and finds damaged weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.command import Run
from tests.helpers.gguf import Value, write_gguf
from tests.helpers.tiny import TinyModel


def test_it_shows_shape_vocabulary_and_tensors(run: Run, tiny_path: Path) -> None:
    result = run("inspect", str(tiny_path))
    assert (result.code, result.err) == (0, "")
    for line in [
        "architecture   gpt_bigcode",
        "n_ctx          16",
        "n_vocab        320",
        "n_tokens       309",
        "n_padding      11",
        "eos_id         0",
        "             2 <fim_middle>",
    ]:
        assert line in result.out.splitlines()
    row = next(r for r in result.out.splitlines() if r.startswith("blk.1.ffn_down.weight"))
    assert row.split() == ["blk.1.ffn_down.weight", "32", "x", "128", "f32", "16,384", "32"]


def test_it_shows_the_steps_that_run_the_model(run: Run, data: Path) -> None:
    result = run("inspect", str(data / "gpt_bigcode-q4_0.gguf"), "--graph")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "%0 = embed  [1024 x 256 Q6_K] positions  -> 256"
    assert lines[2] == "%2 = linear %1  [384 x 256 Q4_0] bias  -> 384"
    assert sum(" = attention " in line for line in lines) == 2
    assert lines[-1] == "%18 = linear %17  [1024 x 256 Q6_K]  -> 1024 of the selected rows"


@pytest.mark.parametrize("flag", ["--json", "--check"])
def test_the_steps_are_shown_alone(run: Run, data: Path, flag: str) -> None:
    result = run("inspect", str(data / "gpt_bigcode-q4_0.gguf"), "--graph", flag)
    assert (result.code, result.out) == (2, "")
    assert f"--graph: found {flag}, expected one of them at a time" in result.err


def test_json_adds_up(run: Run, data: Path) -> None:
    result = run("inspect", str(data / "gpt_bigcode-q4_0.gguf"), "--json", "--check")
    facts = json.loads(result.out)
    assert (result.code, facts["finite"], facts["damage"]) == (0, True, None)
    assert sum(t["bytes"] for t in facts["tensors"]) == facts["weight_bytes"]
    assert sum(total["bytes"] for total in facts["types"].values()) == facts["weight_bytes"]
    sizes = {t["name"]: (t["type"], t["bits_a_weight"]) for t in facts["tensors"]}
    assert sizes["blk.0.ffn_up.weight"] == ("q4_0", 4.5)
    assert facts["vocabulary"]["special_tokens"]["1"] == "<fim_prefix>"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_check_names_the_first_weight_that_is_not_finite(
    run: Run,
    tmp_path: Path,
    tiny: TinyModel,
    options: tuple[str, ...],
) -> None:
    tiny.weights["blk.1.attn_qkv.weight"][3, 9] = np.inf
    tiny.weights["blk.1.ffn_up.weight"][0, 0] = np.nan
    path = str(write_gguf(tmp_path / "x.gguf", tiny))
    assert run("inspect", path, *options).code == 0
    result = run("inspect", path, "--check", *options)
    assert result.code == 1
    assert "tensor blk.1.attn_qkv.weight: found inf in row 3, column 9" in result.err
    if options:
        assert "row 3, column 9" in json.loads(result.out)["damage"]


def test_no_control_character_of_a_file_reaches_the_terminal(
    run: Run,
    tmp_path: Path,
    tiny: TinyModel,
) -> None:
    path = write_gguf(tmp_path / "x", tiny, keys={"general.name": Value("str", "a\x1b[2Jb")})
    assert "\x1b" not in run("inspect", str(path)).out


def test_a_bad_file_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"GGUF\x03")
    result = run("inspect", str(tmp_path / "x"))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)


def test_position_embeddings_are_shown_and_kept_in_the_type_of_the_file(
    run: Run, tmp_path: Path, tiny: TinyModel
) -> None:
    source, first, second = (str(tmp_path / name) for name in ("a.gguf", "b.gguf", "c.gguf"))
    write_gguf(Path(source), tiny)
    assert run("quantize", source, first, "q8_0", "--tensor-type", "position_embd=f16").code == 0
    assert run("convert", first, second).code == 0
    for path in (first, second):
        facts = json.loads(run("inspect", path, "--json").out)
        types = {t["name"]: t["type"] for t in facts["tensors"]}
        assert types["position_embd.weight"] == "f16"
        assert facts["weight_bytes"] < Path(path).stat().st_size
    texts = [run("-m", path, "-p", "a", "-n", "4", "--temp", "0").out for path in (first, second)]
    assert texts[0] == texts[1] != ""


def test_json_does_nothing_to_a_terminal(run: Run, tmp_path: Path, tiny: TinyModel) -> None:
    name = "a\x9b31m\x7f\u202eb"
    path = write_gguf(tmp_path / "x.gguf", tiny, keys={"general.license": Value("str", name)})
    out = run("inspect", str(path), "--json").out
    assert out.rstrip("\n").isprintable()
    assert json.loads(out)["license"] == name
