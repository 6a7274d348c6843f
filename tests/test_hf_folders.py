"""Folders as people have them: indexes of another time, shards without one, names with a prefix.

What is there decides: each folder here gives the model of a whole one, and says what it lacked.
"""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from starcoder import formats
from starcoder.model.checkpoint import Checkpoint
from tests.helpers.command import Run
from tests.helpers.hf import hf_weights, write_hf
from tests.helpers.refusals import refused
from tests.helpers.tiny import TinyModel, make_tiny
from tests.helpers.torch_file import (
    TABLE,
    storage,
    table,
    tensor,
    text,
    write_hf_bin,
    write_torch,
    write_zip,
)

INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture
def whole(tmp_path: Path, tiny: TinyModel) -> Checkpoint:
    """What every folder of this model should give."""
    return formats.read(write_hf(tmp_path / "whole", tiny))


def put_index(path: Path, placed: Mapping[str, str], name: str = INDEX) -> None:
    (path / name).write_text(json.dumps({"metadata": {}, "weight_map": dict(placed)}))


def index_of(path: Path) -> dict[str, str]:
    return dict(json.loads((path / INDEX).read_text())["weight_map"])


# ------------------------------------------------------------------------------------------------
# The index and the files


def test_a_whole_file_counts_though_an_index_names_shards_that_are_gone(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    put_index(path, dict.fromkeys(hf_weights(tiny), SHARDS[0]))
    found = formats.read(path)
    assert found == whole
    assert found.notices == (f"{INDEX} is not used: model.safetensors is there",)


def test_pytorchs_file_counts_though_an_index_names_safetensors_that_are_gone(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf_bin(tmp_path / "hf", tiny)
    put_index(path, dict.fromkeys(hf_weights(tiny), SHARDS[0]))
    found = formats.read(path)
    assert found == whole
    (notice,) = found.notices
    assert SHARDS[0] in notice
    assert "pytorch_model.bin is read instead" in notice


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_need_no_index(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, suffix: str
) -> None:
    write = write_hf if suffix == "safetensors" else write_hf_bin
    path = write(tmp_path / "hf", tiny, n_shards=3)
    next(path.glob("*.index.json")).unlink()
    assert formats.read(path) == whole


@pytest.mark.parametrize("has_index", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_missing_shard_is_named(
    tmp_path: Path, tiny: TinyModel, suffix: str, has_index: bool
) -> None:
    write = write_hf if suffix == "safetensors" else write_hf_bin
    path = write(tmp_path / "hf", tiny, n_shards=3)
    lost = next(path.glob(f"*-00002-of-00003.{suffix}"))
    lost.unlink()
    if not has_index:
        next(path.glob("*.index.json")).unlink()
    refused(path, f"{lost}: no such file", "download it")


def test_an_index_of_other_shards_is_not_believed(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    put_index(path, dict.fromkeys(hf_weights(tiny), "model-00001-of-00002.safetensors"))
    found = formats.read(path)
    assert found == whole
    assert INDEX in found.notices[0]


def test_a_tied_output_that_only_the_index_names_is_not_missed(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    put_index(path, index_of(path) | {"lm_head.weight": SHARDS[2]})
    found = formats.read(path)
    assert found == whole
    assert found.notices == (f"{INDEX} is wrong about lm_head.weight: the files decide",)


def test_an_output_of_its_own_that_only_the_index_names_is_missed(tmp_path: Path) -> None:
    path = write_hf(tmp_path / "hf", make_tiny(), config={"tie_word_embeddings": False}, n_shards=3)
    put_index(path, index_of(path) | {"lm_head.weight": SHARDS[2]})
    refused(path, "lm_head.weight")


def test_tensors_count_where_they_are_and_not_where_the_index_says(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    placed = index_of(path)
    first, second = list(placed)[:2]
    del placed[first]
    placed[second] = next(shard for shard in SHARDS if shard != placed[second])
    put_index(path, placed)
    found = formats.read(path)
    assert found == whole
    assert first in found.notices[0]
    assert second in found.notices[0]


def test_a_shard_that_the_index_does_not_name_is_read_with_its_series(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    put_index(path, {name: file for name, file in index_of(path).items() if file != SHARDS[1]})
    assert formats.read(path) == whole


def test_of_two_tensors_of_one_name_the_index_chooses(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    name, place = "transformer.wpe.weight", index_of(path)["transformer.wpe.weight"]
    for shard in SHARDS:
        if shard != place:
            arrays = load_file(path / shard)
            save_file(arrays | {name: np.zeros((16, 32), np.float32)}, path / shard)
    assert formats.read(path) == whole
    (path / INDEX).unlink()
    refused(path, f"tensor {name}: found other numbers than in another file")


def test_what_stands_twice_and_equal_is_read_once(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    (path / INDEX).unlink()
    first = load_file(path / SHARDS[0])
    save_file(load_file(path / SHARDS[1]) | first, path / SHARDS[1])
    assert formats.read(path) == whole


@pytest.mark.parametrize("lost", [1, 3])
def test_whole_weights_of_either_kind_count_beside_broken_off_ones(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, lost: int
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    (path / SHARDS[lost - 1]).unlink()
    write_torch(path / "pytorch_model.bin", hf_weights(tiny))
    found = formats.read(path)
    assert found == whole
    assert f"{SHARDS[lost - 1]}: no such file" in found.notices[0]


def test_a_pointer_does_not_count_as_weights(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf_bin(tmp_path / "hf", tiny)
    (path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    found = formats.read(path)
    assert found == whole
    assert "git-lfs pointer" in found.notices[0]


@pytest.mark.parametrize("text", ["version https://git-lfs", "<html>", "", "[]"])
def test_nor_does_an_index_that_is_none(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, text: str
) -> None:
    path = write_hf_bin(tmp_path / "hf", tiny)
    (path / INDEX).write_text(text)
    found = formats.read(path)
    assert found == whole
    assert found.notices[0].startswith(INDEX)


@pytest.mark.parametrize(
    "text", ["version https://git-lfs", "<html>", "", "[]", "{}", '{"weight_map": {"a": "/x"}}']
)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_whole_shards_need_no_index_that_can_be_used(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, suffix: str, text: str
) -> None:
    write = write_hf if suffix == "safetensors" else write_hf_bin
    path = write(tmp_path / "hf", tiny, n_shards=3)
    index = next(path.glob("*.index.json"))
    index.write_text(text)
    found = formats.read(path)
    assert found == whole
    (notice,) = found.notices
    assert notice.startswith(f"{index.name}: ")
    assert notice.endswith("; the index is not used")


def test_a_byte_order_mark_before_json_does_no_harm(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    (path / "generation_config.json").write_text("{}")
    files = list(path.glob("*.json"))
    assert len(files) == 4
    for file in files:
        file.write_bytes(codecs.BOM_UTF8 + file.read_bytes())
    found = formats.read(path)
    assert found == whole
    assert found.notices == ()


def test_shards_of_two_models_are_not_mixed(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=2)
    write_hf(tmp_path / "other", tiny, n_shards=3)
    for shard in SHARDS:
        shutil.copy(tmp_path / "other" / shard, path / shard)
    assert formats.read(path).notices == ()  # the index tells which
    (path / INDEX).unlink()
    refused(path, "shards of two sizes", "remove the older ones")


def test_a_whole_folder_gives_no_notice(whole: Checkpoint) -> None:
    assert whole.notices == ()


# ------------------------------------------------------------------------------------------------
# Names

WRAP: dict[str, Callable[[str], str]] = {
    "bare": lambda name: name.removeprefix("transformer."),
    "module": lambda name: f"module.{name}",
    "peft": lambda name: f"base_model.model.{name}",
    "both": lambda name: f"module.base_model.model.{name}",
    "model": lambda name: f"model.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "inner": lambda name: name.replace("transformer.", "model.") if "lm_head" not in name else name,
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", WRAP)
def test_a_common_prefix_of_names_does_not_matter(tmp_path: Path, kind: str, tied: bool) -> None:
    model, wrap = make_tiny(tied=tied), WRAP[kind]
    whole = formats.read(write_hf(tmp_path / "whole", model))
    weights = {wrap(name): array for name, array in hf_weights(model).items()}
    assert formats.read(write_hf(tmp_path / "hf", model, weights=weights)) == whole


def test_what_inference_does_not_need_is_passed_over_and_named_once(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint
) -> None:
    weights = {f"module.{name}": array for name, array in hf_weights(tiny).items()}
    weights["v_head.summary.weight"] = np.ones((1, 32), np.float32)
    weights["v_head.summary.bias"] = np.ones(1, np.float32)
    for i in range(2):
        weights[f"module.transformer.h.{i}.attn.bias"] = np.ones((1, 1, 16, 16), bool)
        weights[f"module.transformer.h.{i}.attn.masked_bias"] = np.ones((), np.float32)
    found = formats.read(write_hf(tmp_path / "hf", tiny, weights=weights))
    assert found == whole
    (notice,) = found.notices
    assert "module.transformer.h.0.attn.bias" in notice
    assert notice.endswith("and 3 more")


def test_an_unknown_tensor_is_not_passed_over(tmp_path: Path, tiny: TinyModel) -> None:
    weights = hf_weights(tiny) | {"transformer.h.0.attn.gate.weight": np.ones(32, np.float32)}
    refused(write_hf(tmp_path / "hf", tiny, weights=weights), "attn.gate.weight", "another model")


def test_two_models_in_one_file_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    weights = hf_weights(tiny)
    weights |= {f"ref_model.{name}": array for name, array in weights.items()}
    path = write_hf(tmp_path / "hf", tiny, weights=weights)
    refused(path, "two embeddings", "ref_model.", "there are two models")


def nested(path: Path, arrays: Mapping[str, np.ndarray], key: str, beside: bytes) -> Path:
    """A table of tensors in a table, as programs that train save it."""
    items, raws = b"", {}
    for i, (name, array) in enumerate(arrays.items()):
        items += text(name) + tensor(storage("Float", str(i), array.size), array.shape)
        raws[str(i)] = array.tobytes()
    return write_zip(path, table({key: TABLE + b"(" + items + b"u", "epoch": beside}), raws)


@pytest.mark.parametrize("key", ["model", "state_dict", "module"])
def test_a_table_in_a_table_is_read(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, key: str
) -> None:
    def write(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
        return nested(path, arrays, key, b"K\x03")

    assert formats.read(write_hf_bin(tmp_path / "hf", tiny, write=write)) == whole


@pytest.mark.parametrize(("key", "beside"), [("model", b"}"), ("optimizer", b"K\x03")])
def test_other_tables_in_a_table_are_refused(
    tmp_path: Path, tiny: TinyModel, key: str, beside: bytes
) -> None:
    def write(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
        return nested(path, arrays, key, beside)

    refused(write_hf_bin(tmp_path / "hf", tiny, write=write), "save it as safetensors")


# ------------------------------------------------------------------------------------------------
# A file of the folder in place of the folder

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("write", "n_shards", "name"),
    [
        (write_hf, 1, "model.safetensors"),
        (write_hf, 1, "config.json"),
        (write_hf, 1, "tokenizer.json"),
        (write_hf, 3, SHARDS[1]),
        (write_hf, 3, INDEX),
        (write_hf_bin, 1, "pytorch_model.bin"),
        (write_hf_bin, 3, TORCH_INDEX),
    ],
)
def test_a_file_of_a_folder_stands_for_the_folder(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, write: Write, n_shards: int, name: str
) -> None:
    path = write(tmp_path / "hf", tiny, n_shards=n_shards)
    assert formats.read(path / name) == whole


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_without_its_folder_says_what_it_needs(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "config.json").unlink()
    refused(path / name, name, "a folder with config.json")


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors"])
def test_a_converted_model_notes_the_folder_that_it_is_from(
    tmp_path: Path, tiny: TinyModel, run: Run, name: str
) -> None:
    path, out = write_hf(tmp_path / "my-model", tiny), tmp_path / "x.gguf"
    assert run("convert", str(path / name), str(out)).code == 0
    assert b"my-model" in out.read_bytes()
    assert (name or "config.json").encode() not in out.read_bytes()


def test_inspect_and_convert_take_what_is_there_and_say_so(
    tmp_path: Path, tiny: TinyModel, whole: Checkpoint, run: Run
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    put_index(path, dict.fromkeys(hf_weights(tiny), SHARDS[0]))
    assert INDEX in run("inspect", str(path / "model.safetensors")).err
    result = run("convert", str(path), str(tmp_path / "x.gguf"), "--type", "f32")
    assert result.code == 0
    assert result.err.count(INDEX) == 1
    assert formats.read(tmp_path / "x.gguf") == whole
