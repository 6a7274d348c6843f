"""Nothing that is not finite gets into a file, in whichever tensor and whatever is written."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from starcoder import formats
from starcoder.convert.finite import check_rows
from starcoder.core import ops
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import FormatError
from tests.helpers.command import Run
from tests.helpers.every_format import WRITERS
from tests.helpers.gguf import write_gguf
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel, make_tiny

PLACES = [
    *("token_embd.weight", "position_embd.weight", "output.weight"),
    *("output_norm.weight", "output_norm.bias", "blk.1.attn_norm.weight", "blk.0.ffn_norm.bias"),
    *("blk.1.attn_qkv.weight", "blk.0.attn_qkv.bias", "blk.0.ffn_up.bias", "blk.1.ffn_down.weight"),
]
COMMANDS = [
    *("convert SRC OUT.gguf --type f32", "convert SRC OUT.gguf --type f16"),
    *("convert SRC OUT.gguf --type q4_0", "convert SRC OUT.gguf", "convert SRC OUT.bin --type f16"),
    *("quantize SRC OUT.gguf q4_0", "quantize SRC OUT.bin q8_0", "quantize SRC OUT.gguf f32"),
]


def command(text: str, source: Path, folder: Path) -> list[str]:
    return text.replace("SRC", str(source)).replace("OUT", str(folder / "out")).split(" ")


@pytest.mark.parametrize("text", COMMANDS)
@pytest.mark.parametrize("name", PLACES)
def test_a_weight_that_is_not_finite_is_named_wherever_it_is(
    run: Run, tmp_path: Path, name: str, text: str
) -> None:
    model = make_tiny(tied=name != "output.weight")
    model.weights[name].reshape(-1)[-1] = {"q": np.nan, "c": -np.inf}[text[0]]
    source = write_gguf(tmp_path / "in.gguf", model)
    out = tmp_path / "folder"
    out.mkdir()
    result = run(*command(text, source, out))
    last = result.err.splitlines()[-1]
    assert result.code == 2, result.err
    assert re.search(rf"tensor {name}: found (nan|-inf) in row \d+, column \d+, expected", last)
    assert not list(out.iterdir())


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_kind_of_source_is_looked_at(
    run: Run, tmp_path: Path, tiny: TinyModel, kind: str
) -> None:
    tiny.weights["blk.1.attn_qkv.bias"][-1] = np.nan
    source = WRITERS[kind](tmp_path / kind, tiny)
    result = run("convert", str(source), str(tmp_path / "out.gguf"))
    assert result.code == 2
    assert "blk.1.attn_qkv.bias: found nan" in result.err.splitlines()[-1]
    assert not (tmp_path / "out.gguf").exists()


def test_a_directory_of_f16_that_stays_f16_is_looked_at(
    run: Run, tmp_path: Path, tiny: TinyModel
) -> None:
    for name, array in tiny.weights.items():
        tiny.weights[name] = array.astype(np.float16)
    whole = write_hf(tmp_path / "whole", tiny)
    assert run("convert", str(whole), str(tmp_path / "whole.gguf")).code == 0
    found = formats.read(tmp_path / "whole.gguf")
    assert found.type_name == "f16"
    assert dict(found.tensors) == dict(formats.read(whole).tensors)
    for name in ("blk.1.ffn_down.weight", "token_embd.weight", "output_norm.bias"):
        damaged = make_tiny()
        damaged.weights = {n: a.copy() for n, a in tiny.weights.items()}
        damaged.weights[name].reshape(-1)[3] = np.inf
        source = write_hf(tmp_path / "damaged", damaged)
        result = run("convert", str(source), str(tmp_path / "out.gguf"))
        assert result.code == 2
        assert f"tensor {name}: found inf" in result.err.splitlines()[-1]
        assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_whatever_bytes_a_block_has_its_weights_are_known_to_be_finite_or_not(
    kind: TensorType,
) -> None:
    """The look at the scales alone agrees with decoding every weight."""
    rng = np.random.default_rng(int(kind))
    shape = (1, max(kind.block_len, 8))
    n_bad = 0
    for _ in range(3000):
        data = rng.integers(0, 256, kind.nbytes(shape), np.uint8)
        data[rng.integers(0, len(data), len(data) // 8)] |= 0x7C  # more that are not finite
        rows = Tensor(kind, shape, data)
        with np.errstate(invalid="ignore"):
            is_finite = bool(np.isfinite(ops.dequantize(rows)).all())
        n_bad += not is_finite
        if is_finite:
            check_rows(rows, 0, "x")
        else:
            with pytest.raises(FormatError, match=r"x: found (nan|-?inf) in row 0"):
                check_rows(rows, 0, "x")
    assert 0 < n_bad < 3000
