"""Models as other programs write them: each loads, and answers as its twin does.

`data/writers.tar.xz`, made by `writers/pack.py`, has folders of transformers and peft and parts of
llama.cpp's llama-gguf-split, all of one tiny model. Files of the `gguf` package are made here.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

import starcoder
from starcoder import formats
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.command import Run
from tests.helpers.gguf import gguf_keys, write_gguf
from tests.helpers.tiny import TinyModel, make_tiny

ARCHIVE = Path(__file__).parent / "data" / "writers.tar.xz"
with tarfile.open(ARCHIVE) as archive:
    NAMES = sorted({name for name in archive.getnames() if name.count("/") == 1})
FOLDERS = [n for n in NAMES if n.startswith("transformers") and "." not in n.partition("/")[2]]
LOADED = [name for name in FOLDERS if not name.endswith("/adapter")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writers")
    safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, **safe)
    return folder


IDS = [5, 70, 300, 0, 17, 301, 302, 9, 1, 44]


def logits(path: Path, ids: list[int] = IDS) -> np.ndarray:
    return starcoder.LLM(path, n_threads=1).logits(ids)


@pytest.mark.parametrize("name", LOADED)
def test_a_folder_answers_as_transformers_did(written: Path, name: str) -> None:
    theirs = np.load((written / name).parent / "logits.npz")
    found, expected = logits(written / name), theirs["logits"]
    assert theirs["ids"].tolist() == IDS
    assert np.abs(found - expected).max() < (2e-2 if name.endswith("bf16") else 2e-3)
    if not name.endswith("bf16"):
        assert np.array_equal(found, logits(written / "transformers-5" / "safetensors"))


@pytest.mark.parametrize("name", LOADED)
def test_a_folder_reads_text_as_transformers_did(written: Path, name: str) -> None:
    tokens = json.loads((written / name).parent.joinpath("tokens.json").read_text())
    expected = tokens["ids"][name.partition("/")[2]] or tokens["ids"]["safetensors"]
    tokenizer = Tokenizer(formats.read(written / name).vocab)
    assert [tokenizer.encode(text) for text in tokens["texts"]] == expected


@pytest.mark.parametrize("name", LOADED)
def test_a_folder_goes_through_every_command(
    written: Path, name: str, tmp_path: Path, run: Run
) -> None:
    source, out, small = str(written / name), tmp_path / "f32.gguf", tmp_path / "q8_0.gguf"
    assert run("inspect", source, "--check").code == 0
    assert run("convert", source, str(out), "--type", "f32").code == 0
    assert np.array_equal(logits(out), logits(written / "transformers-5" / "safetensors"))
    assert run("quantize", str(out), str(small), "q8_0").code == 0
    results = [
        run("-m", str(path), "-p", "def add", "-n", "4", "--temp", "0", "-t", "1")
        for path in (source, out)
    ]
    assert [result.code for result in results] == [0, 0]
    assert results[0].out.startswith("def add")
    if not name.endswith("bf16"):  # which computes in bf16
        assert results[0].out == results[1].out


@pytest.mark.parametrize("name", [name for name in FOLDERS if name.endswith("/adapter")])
def test_an_adapter_is_refused_by_name(written: Path, name: str, run: Run) -> None:
    result = run("-m", str(written / name), "-p", "x")
    assert (result.code, result.out) == (2, "")
    assert "adapter" in result.err
    assert "merge_and_unload" in result.err


# ------------------------------------------------------------------------------------------------
# GGUF


def write_with_gguf(path: Path, model: TinyModel, kind: str, **options: Any) -> Path:
    """As the `gguf` package writes it; matrices in a type, positions too for "q8_0"."""
    keys = gguf_keys(model)
    writer = GGUFWriter(path, "starcoder", **options)
    for key, value in keys.items():
        name = key.removeprefix("general.")
        if key == "general.architecture":
            continue
        if isinstance(value.value, list):
            writer.add_array(key, value.value)
        elif value.type == "str":
            writer.add_string(key, value.value) if name == key else writer.add_name(value.value)
        elif value.type == "f32":
            writer.add_float32(key, value.value)
        else:
            writer.add_uint32(key, value.value)
    for name, array in model.weights.items():
        if array.ndim == 2 and kind != "f32":
            number = GGMLQuantizationType[kind.upper()]
            writer.add_tensor(name, quantize(array, number), raw_dtype=number)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("first", [False, True])
def test_parts_of_the_gguf_package_answer_as_the_whole(
    tmp_path: Path, kind: str, first: bool
) -> None:
    model = make_tiny()
    whole = write_with_gguf(tmp_path / "whole.gguf", model, kind)
    write_with_gguf(
        tmp_path / "parts.gguf", model, kind, split_max_tensors=5, small_first_shard=first
    )
    parts = sorted(tmp_path.glob("parts-0*.gguf"))
    assert len(parts) > 3
    for path in (parts[0], parts[1], parts[-1]):
        assert np.array_equal(logits(path), logits(whole))
    if kind == "f32":
        twin = write_gguf(tmp_path / "twin.gguf", model)
        assert np.array_equal(logits(whole), logits(twin))


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("llama-gguf-split/")])
def test_parts_of_llama_gguf_split_answer_as_the_whole(written: Path, name: str) -> None:
    expected = logits(written / "transformers-5" / "safetensors")
    assert np.array_equal(logits(written / name), expected)
