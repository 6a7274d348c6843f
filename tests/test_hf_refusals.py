"""Folders that cannot be run: the cause by its name, and what to do; never blame of good bytes."""

from __future__ import annotations

import json
import os
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.errors import FormatError
from tests.helpers.command import Run
from tests.helpers.gguf import Value, write_gguf
from tests.helpers.hf import hf_weights, write_hf
from tests.helpers.refusals import refused
from tests.helpers.tiny import TinyModel
from tests.helpers.torch_file import write_hf_bin, write_torch

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\n"
PAGES = {
    "html": "\n<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>",
    "no doctype": "<html>proxy</html>",
    "xml": "<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "hub": "Entry not found",
    "json": '{"error": "Repository not found"}',
    "gated": "Access to model bigcode/starcoder is restricted and you are not in the list.",
}


# ------------------------------------------------------------------------------------------------
# What is not the file that its name says

FILES = ["config.json", "tokenizer.json", "model.safetensors"]


@pytest.mark.parametrize("name", [*FILES, "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_in_a_folder_is_named(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    write = write_hf_bin if name.endswith(".bin") else write_hf
    path = write(tmp_path / "hf", tiny)
    (path / name).write_text(LFS)
    refused(path, f"{name}: found a git-lfs pointer", "git lfs pull")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", [*FILES, "pytorch_model.bin"])
def test_a_page_of_the_web_in_a_folder_is_named_and_shown(
    tmp_path: Path, tiny: TinyModel, name: str, page: str
) -> None:
    write = write_hf_bin if name.endswith(".bin") else write_hf
    path = write(tmp_path / "hf", tiny)
    (path / name).write_text(PAGES[page])
    refused(path, f"{name}: found a web page", PAGES[page].split()[0], "download the file again")


@pytest.mark.parametrize("index", ["", LFS, "garbage", None])
def test_pointers_among_shards_are_named(
    tmp_path: Path, tiny: TinyModel, index: str | None
) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    name = "model-00002-of-00003.safetensors"
    (path / name).write_text(LFS)
    if index is not None:
        (path / "model.safetensors.index.json").write_text(index)
    refused(path, f"{name}: found a git-lfs pointer", "git lfs pull")
    (path / "model-00001-of-00003.safetensors").unlink()
    refused(path, f"{name}: found a git-lfs pointer", "git lfs pull")


def test_a_pointer_that_is_there_is_named_and_not_shards_of_an_index_of_another_time(
    tmp_path: Path, tiny: TinyModel
) -> None:
    path = write_hf_bin(tmp_path / "hf", tiny, n_shards=3)
    placed = {"transformer.wte.weight": "model-00001-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": placed}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    name = "pytorch_model-00002-of-00003.bin"
    (path / name).write_text(LFS)
    refused(path, f"{name}: found a git-lfs pointer")
    (path / name).unlink()
    refused(path, f"{name}: no such file")


def test_pointers_of_shards_without_an_index_are_named(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=3)
    (path / "model.safetensors.index.json").unlink()
    (path / "model-00002-of-00003.safetensors").write_text(LFS)
    refused(path, "model-00002-of-00003.safetensors: found a git-lfs pointer")


# ------------------------------------------------------------------------------------------------
# JSON that a hand has changed


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_of_another_shape_says_what_belongs_there(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    text = (path / name).read_text()
    (path / name).write_text(f"[{text}]")
    refused(path, f"{name}: found a JSON list, expected a JSON object")
    (path / name).write_text(text[:-1] + ",}")
    refused(path, name, "no valid JSON", "mend it there")
    (path / name).write_text(text[:-1] + ', "x": NaN}')
    refused(path, name, "NaN", "mend it there")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("cut", [b"{", b'{"a', b'{"a": [1,', b"\xff\xfe{\0}\0"])
def test_json_that_is_cut_off_or_no_text_is_called_damaged(
    tmp_path: Path, tiny: TinyModel, name: str, cut: bytes
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / name).write_bytes(cut)
    with pytest.raises(FormatError, match="truncated or damaged"):
        formats.read(path)


# ------------------------------------------------------------------------------------------------
# Models of another kind


def adapter(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(b"anything")
    return path


def test_an_adapter_is_named_with_its_base(tmp_path: Path, tiny: TinyModel) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": "bigcode/starcoderbase-1b"}
    path = adapter(tmp_path / "lora", config)
    words = ("a LoRA adapter for the base model 'bigcode/starcoderbase-1b'", "merge_and_unload")
    refused(path, *words)
    refused(path / "adapter_model.safetensors", *words)
    refused(path / "adapter_config.json", *words)
    write_hf(tmp_path / "hf", tiny)
    (tmp_path / "hf" / "model.safetensors").unlink()
    for file in (tmp_path / "hf").iterdir():
        file.rename(path / file.name)
    (path / "model.safetensors.index.json").write_text("{}")
    refused(path, *words)  # with the files of its base, but for the weights


@pytest.mark.parametrize("config", [{}, {"peft_type": 7, "base_model_name_or_path": None}])
def test_an_adapter_of_unknown_base_is_an_adapter(tmp_path: Path, config: dict[str, Any]) -> None:
    refused(adapter(tmp_path / "lora", config), "a PEFT adapter", "merge_and_unload")


def test_an_adapter_beside_whole_weights_is_told_of(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "adapter_config.json").write_text("{}")
    found = formats.read(path)
    assert found == formats.read(write_hf(tmp_path / "whole", tiny))
    assert "the adapter beside the model is not applied" in found.notices[0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, 4 bits"),
        ({}, "unknown"),
        ("yes", "unknown"),
    ],
)
def test_weights_that_another_program_quantized_are_named(
    tmp_path: Path, tiny: TinyModel, table: Any, words: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={"quantization_config": table})
    refused(path, f"quantized by another program ({words})", "use the model that it was made from")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("transformer.h.0.attn.c_attn.qweight", "GPTQ or AWQ"),
        ("transformer.h.0.attn.c_attn.SCB", "bitsandbytes' 8 bits"),
        ("transformer.h.0.attn.c_attn.weight.absmax", "bitsandbytes' 4 bits"),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", "merge_and_unload"),
        ("transformer.h.0.attn.c_attn.base_layer.weight", "an adapter (LoRA)"),
        ("transformer.h.0.attn.q_attn.weight", "bigcode/gpt_bigcode-santacoder"),
        ("transformer.h.0.attn.kv_attn.weight", "bigcode/gpt_bigcode-santacoder"),
    ],
)
def test_tensors_of_something_else_are_named(
    tmp_path: Path, tiny: TinyModel, name: str, words: str
) -> None:
    weights = hf_weights(tiny) | {name: np.zeros((2, 2), np.float32)}
    refused(write_hf(tmp_path / "hf", tiny, weights=weights), f"tensor {name}", words)
    path = write_hf_bin(tmp_path / "bin", tiny, weights=weights)
    refused(path, f"tensor {name}", words)


CUSTOM = {"AutoModelForCausalLM": "modeling_gpt2_mq.GPT2LMHeadCustomModel"}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "auto_map": CUSTOM, "attention_head_type": "multiquery"},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadCustomModel"]},
        {"model_type": "gpt2", "attention_head_type": "multiquery"},
    ],
)
def test_the_first_santacoder_is_named_with_its_twin(
    tmp_path: Path, tiny: TinyModel, config: dict[str, Any]
) -> None:
    path = write_hf(tmp_path / "hf", tiny, config=config)
    refused(path, "SantaCoder with its own code", "bigcode/gpt_bigcode-santacoder")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "starcoder2"}, "StarCoder2 is not supported yet"),
        ({"model_type": "llama"}, "found 'llama', expected 'gpt_bigcode'"),
        ({"model_type": "mpt", "auto_map": {"AutoModel": "modeling.X"}}, "modeling.X"),
        ({"architectures": ["X"], "auto_map": {"AutoModel": "modeling.X"}}, "code of its own"),
        ({"architectures": [], "auto_map": 7}, "code of its own"),
        ({"model_type": None, "auto_map": {"AutoModel": []}}, "code of its own"),
    ],
)
def test_models_of_another_kind_are_named(
    tmp_path: Path, tiny: TinyModel, config: dict[str, Any], words: str
) -> None:
    refused(write_hf(tmp_path / "hf", tiny, config=config), "config.json", words)


def test_code_beside_a_model_of_our_kind_is_not_run_and_that_is_said(
    tmp_path: Path, tiny: TinyModel
) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={"auto_map": {"AutoModel": "modeling.X"}})
    (path / "modeling.py").write_text("raise SystemExit")
    (notice,) = formats.read(path).notices
    assert "never run" in notice


# ------------------------------------------------------------------------------------------------
# Folders without weights that can be read


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tf_model.h5", "from_tf"),
        ("flax_model.msgpack", "from_flax"),
        ("model.onnx", "that it was exported from"),
        ("consolidated.pth", "save_pretrained"),
        ("adapter_model.bin", "merge_and_unload"),
        ("pytorch_lora_weights.safetensors", "name it model.safetensors"),
    ],
)
def test_weights_of_other_programs_are_named(
    tmp_path: Path, tiny: TinyModel, name: str, words: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "model.safetensors").rename(path / name)
    refused(path, f"weights in {name}", "model.safetensors or pytorch_model.bin", words)


@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json"])
def test_quantized_weights_under_a_name_of_their_own_are_named(
    tmp_path: Path, tiny: TinyModel, name: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "model.safetensors").rename(path / "gptq_model-4bit-128g.safetensors")
    (path / name).write_text("{}")
    refused(path, f"quantized by another program ({name})")


@pytest.mark.parametrize("has_config", [True, False])
def test_a_folder_of_gguf_files_names_the_file_to_give(
    tmp_path: Path, tiny: TinyModel, has_config: bool
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "model.safetensors").unlink()
    if not has_config:
        (path / "config.json").unlink()
    for name in ("b-q8_0.gguf", "a-q4_0.gguf"):
        write_gguf(path / name, tiny)
    refused(path, "a-q4_0.gguf, b-q8_0.gguf", f"give one of them: {path / 'a-q4_0.gguf'}")


def test_a_folder_above_the_model_says_where_it_is(tmp_path: Path, tiny: TinyModel) -> None:
    for step in (500, 1000, 20):
        write_hf(tmp_path / f"checkpoint-{step}", tiny)
    refused(tmp_path, "3 folders with config.json", f"{tmp_path / 'checkpoint-1000'}?")


def test_a_folder_above_adapters_says_where_they_are(tmp_path: Path) -> None:
    adapter(tmp_path / "checkpoint-9", {"peft_type": "LORA"})
    refused(tmp_path, "adapter_config.json", f"{tmp_path / 'checkpoint-9'}?")


def test_an_empty_folder_says_what_it_lacks(tmp_path: Path) -> None:
    refused(tmp_path, "found an empty folder", "the tokenizer and the weights")


def test_a_folder_without_config_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    refused(tmp_path, "config.json: no such file", "the tokenizer and the weights")


def test_names_of_any_bytes_do_no_harm(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / "model.safetensors").unlink()
    Path(os.fsdecode(bytes(path / "x") + b"\xff\n.gguf")).write_bytes(b"")
    refused(path, "a folder of GGUF files")


# ------------------------------------------------------------------------------------------------
# Numbers


@pytest.mark.parametrize("value", ["1e300", "1e999", "-1e300", "1e-300", "0.0"])
def test_an_epsilon_that_cannot_be_is_one_clean_error(
    tmp_path: Path, tiny: TinyModel, run: Run, value: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    config = (path / "config.json").read_text()
    assert "1e-05" in config
    (path / "config.json").write_text(config.replace("1e-05", value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError, match="norm_eps"):
            formats.read(path)
    assert len(run("inspect", str(path)).err.splitlines()) == 1


class Double(Value):
    """A number of 64 bits, as no common program writes it."""

    def encode(self) -> bytes:
        return struct.pack("<Id", 12, self.value)


@pytest.mark.parametrize("value", [1e300, -1e300, float("inf"), float("nan"), 1e39, 1e-300])
def test_nor_is_it_more_than_one_line_in_a_gguf_file(
    tmp_path: Path, tiny: TinyModel, run: Run, value: float
) -> None:
    keys = {"starcoder.attention.layer_norm_epsilon": Double("f64", value)}
    path = write_gguf(tmp_path / "x.gguf", tiny, keys=keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FormatError, match="norm_eps"):
            formats.read(path)
    for command in (("inspect", str(path)), ("-m", str(path), "-p", "x")):
        result = run(*command)
        assert (result.code, len(result.err.splitlines())) == (2, 1)


def test_the_cause_comes_first_in_every_command(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={"model_type": "starcoder2"})
    for command in (("inspect",), ("convert",), ("quantize",), ("-p", "x", "-m")):
        rest = {"convert": ("x.gguf",), "quantize": ("x.gguf", "q4_0")}.get(command[0], ())
        result = run(*command, str(path), *rest)
        assert result.code == 2
        assert "StarCoder2 is not supported yet" in result.err


def test_a_file_of_tensors_of_other_numbers_says_which_are_read(
    tmp_path: Path, tiny: TinyModel
) -> None:
    weights: dict[str, Any] = hf_weights(tiny)
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"].astype(np.float64)
    refused(write_hf(tmp_path / "hf", tiny, weights=weights), "F64", "F32, F16 or BF16")


def test_half_a_weight_file_is_still_called_damaged(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FormatError, match="truncated or damaged"):
        formats.read(path)
    write_torch(path / "pytorch_model.bin", hf_weights(tiny))
    with pytest.raises(FormatError, match="truncated or damaged"):
        formats.read(path)
