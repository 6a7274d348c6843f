"""Hugging Face directories that are wrong in one place end in one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from starcoder import formats
from tests.helpers.hf import hf_tokenizer, write_hf
from tests.helpers.refusals import fails
from tests.helpers.tiny import TinyModel


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("scale_attn_weights", False),
        ("n_embd", "32"),
        ("n_embd", True),
        ("n_embd", None),
        ("n_embd", -32),
        ("n_embd", 10**30),
        ("n_embd", 10**4000),
        ("n_head", 0),
        ("n_layer", 3),
        ("n_layer", 10**9),
        ("vocab_size", 16),
        ("vocab_size", 10**9),
        ("vocab_size", 1 << 24),
        ("multi_query", "yes"),
        ("multi_query", False),
        ("num_key_value_heads", 2),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", "1e-5"),
        ("eos_token_id", "0"),
        ("bos_token_id", [0, True]),
        ("tie_word_embeddings", False),
    ],
)
def test_bad_hf_configurations_are_refused(
    tmp_path: Path, tiny: TinyModel, key: str, value: Any
) -> None:
    fails(write_hf(tmp_path / "hf", tiny, config={key: value}))


def tokenizer_with(model: TinyModel, path: str, value: Any) -> dict[str, Any]:
    table: Any = hf_tokenizer(model)
    target = table
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))
    for key in keys:
        target = target[key]
    target[last] = value
    return dict(table)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("normalizer", {"type": "NFC"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a+)+$"}}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 7}),
        ("pre_tokenizer/pretokenizers/0/individual_digits", False),
        ("pre_tokenizer/pretokenizers/1/add_prefix_space", True),
        ("pre_tokenizer/pretokenizers/1/use_regex", False),
        ("model", []),
        ("model/type", "Unigram"),
        ("model/byte_fallback", True),
        ("model/ignore_merges", True),
        ("model/dropout", 0.1),
        ("model/vocab", None),
        ("model/vocab", {"a": "0"}),
        ("model/vocab", {"a": True}),
        ("model/vocab", {"a": 7, "b": 7}),
        ("model/vocab", {"a": 320}),
        ("model/vocab", {"a": -1}),
        ("model/vocab", {"a b": 9}),
        ("model/vocab", {"\ud800": 9}),
        ("model/vocab", {"x" * 5000: 9}),
        ("model/merges", None),
        ("model/merges", [1]),
        ("model/merges", ["a b c"]),
        ("model/merges", [["a"]]),
        ("model/merges", [["a", 1]]),
        ("model/merges", ["q q"]),
        ("added_tokens/0", 7),
        ("added_tokens/0/id", 320),
        ("added_tokens/0/id", 1),
        ("added_tokens/0/id", None),
        ("added_tokens/0/content", ""),
        ("added_tokens/0/content", "\ud800"),
        ("added_tokens/0/content", "!"),
    ],
)
def test_bad_tokenizers_are_refused(
    tmp_path: Path, tiny: TinyModel, where: str, value: Any
) -> None:
    table = tokenizer_with(tiny, where, value)
    fails(write_hf(tmp_path / "hf", tiny, tokenizer=table), "tokenizer.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "nul",
        '{"a":1,"a":2}',
        '{"a":NaN}',
        "[" * 100_000,
        "\ufeff{}",
        '{"a":' + "9" * 5000 + "}",
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_bad_json_is_refused(tmp_path: Path, tiny: TinyModel, name: str, text: str) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    (path / name).write_text(text)
    fails(path, name)


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = (path / "model.safetensors").read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def put_header(path: Path, header: Any, body: bytes) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + body)
    return path


WPE = "transformer.wpe.weight"


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F8_E4M3"},
        {"dtype": "F16"},
        {"dtype": "I32"},
        {"dtype": 4},
        {"shape": [16, 33]},
        {"shape": [4194305, 4194305, 211106198978564]},
        {"shape": [10**4000] * 9},
        {"shape": [-16, -32]},
        {"shape": [16.0, 32.0]},
        {"shape": 512},
        {"data_offsets": [0]},
        {"data_offsets": [2048, 0]},
        {"data_offsets": [2**64, 2**64 + 2048]},
        {"data_offsets": None},
    ],
)
def test_bad_safetensors_entries_are_refused(
    tmp_path: Path, tiny: TinyModel, change: dict[str, Any]
) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    header, body = header_of(path)
    header[WPE] |= change
    fails(put_header(path, header, body), "tensor transformer.")


def test_bad_safetensors_files_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny)
    header, body = header_of(path)
    other = {("transformer.other" if name == WPE else name): v for name, v in header.items()}
    for bad, rest in (
        (header, body + b"\0"),  # bytes that belong to no tensor
        (header, body[:-1]),
        (other, body),  # an unknown name
        ({k: v for k, v in header.items() if k != WPE}, body),  # a gap
        (b'{"a":1,"a":2}', b""),
        (b"\xff", b""),
        ({"a": 1}, b""),
        ({}, b""),
    ):
        fails(put_header(path, bad, rest))
    (path / "model.safetensors").write_bytes(b"\xff" * 8)
    fails(path, "header")


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/etc/passwd", "a\\b.safetensors", 7, "x.bin"]
)
def test_shards_have_plain_names(tmp_path: Path, tiny: TinyModel, name: Any) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=2)
    index = path / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"][WPE] = name
    index.write_text(json.dumps(table))
    (notice,) = formats.read(path).notices  # the shards are whole by their own names
    assert notice.startswith("model.safetensors.index.json: weight_map: found ")
    (path / "model-00001-of-00002.safetensors").rename(path / "m.safetensors")
    (path / "model-00002-of-00002.safetensors").unlink()
    fails(path, "weight_map", "plain name")


def test_shards_that_lack_tensors_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny, n_shards=2)
    shutil.copy(
        path / "model-00001-of-00002.safetensors", path / "model-00002-of-00002.safetensors"
    )
    fails(path, "weights: ", "a part of the download is missing")
