"""The tiny model as a directory that transformers would read, by a writer of the tests' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from starcoder.model.architecture import Role
from tests.helpers.tiny import TinyModel, printable


def hf_name(model: TinyModel, name: str) -> str:
    """`blk.0.ffn_up.weight` as `transformer.h.0.mlp.c_fc.weight`."""
    spec = model.spec(name)
    return spec.hf if spec.role is Role.OUTPUT else f"transformer.{spec.hf}"


def hf_config(model: TinyModel) -> dict[str, Any]:
    """config.json as transformers writes it: what has a default is null or as the default."""
    keys = {setting.field: setting.hf for setting in model.architecture.settings}
    numbers = {key.name: getattr(model, field, None) for field, key in keys.items()}
    numbers |= {key.name: key.default for key in keys.values() if key.words}
    numbers |= {key.name: None for key in keys.values() if callable(key.default)}
    flags = {key.name: model.n_kv_heads == 1 for key in keys.values() if key.kind is bool}
    return {
        "architectures": [model.architecture.hf_class],
        "model_type": model.architecture.hf,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "scale_attn_weights": True,
        "tie_word_embeddings": "output.weight" not in model.weights,
        **numbers,
        **flags,
    }


def hf_tokenizer(model: TinyModel) -> dict[str, Any]:
    """tokenizer.json as `tokenizers` writes it, merges spelled "a b"."""
    n_special = len(model.specials)
    texts = [*model.specials, *map(printable, model.tokens[n_special:])]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {
        "added_tokens": [
            {"id": i, "content": name, "special": True} for i, name in enumerate(model.specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, text in enumerate(texts)},
            "merges": [f"{printable(left)} {printable(right)}" for left, right in model.merges],
        },
    }


def hf_weights(model: TinyModel) -> dict[str, np.ndarray]:
    """The weights under Hugging Face's names."""
    return {hf_name(model, name): np.ascontiguousarray(a) for name, a in model.weights.items()}


def write_hf(
    path: Path,
    model: TinyModel,
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    n_shards: int = 1,
) -> Path:
    """The model as a directory; `config` and `tokenizer` replace keys, `weights` all of them."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf_config(model) | dict(config or {})))
    (path / "tokenizer.json").write_text(json.dumps(hf_tokenizer(model) | dict(tokenizer or {})))
    arrays = dict(hf_weights(model) if weights is None else weights)
    if n_shards == 1:
        save_file(arrays, path / "model.safetensors")
        return path
    names, placed = sorted(arrays), dict[str, str]()
    for i in range(n_shards):
        shard = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        placed |= dict.fromkeys(names[i::n_shards], shard)
        save_file({name: arrays[name] for name in names[i::n_shards]}, path / shard)
    index = {"metadata": {}, "weight_map": placed}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def put(path: Path, name: str, value: Any) -> Path:
    """A file of a folder: bytes, text, or a value as JSON."""
    """One more file in a folder: text, bytes, or JSON of anything else."""
    if isinstance(value, bytes):
        (path / name).write_bytes(value)
    else:
        (path / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def with_added(model: TinyModel, *added: tuple[int, str], in_vocab: bool = False) -> dict[str, Any]:
    table: Any = hf_tokenizer(model)
    table["added_tokens"] += [{"id": i, "content": text, "special": True} for i, text in added]
    if in_vocab:
        table["model"]["vocab"] |= {text: i for i, text in added}
    return dict(table)


def merge_lines(model: TinyModel) -> list[str]:
    return [f"{printable(left)} {printable(right)}" for left, right in model.merges]


def write_vocab(
    path: Path,
    model: TinyModel,
    *,
    merges: str | bytes | None = None,
    more: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    vocab: Mapping[str, Any] | None = None,
) -> Path:
    """The model with GPT-2's files in place of tokenizer.json; `more` are further files."""
    write_hf(path, model, config=config)
    (path / "tokenizer.json").unlink()
    table = hf_tokenizer(model)["model"]["vocab"]
    put(path, "vocab.json", table if vocab is None else vocab)
    lines = "\n".join(["#version: 0.2", *merge_lines(model), ""])
    put(path, "merges.txt", lines if merges is None else merges)
    for name, value in (more or {}).items():
        put(path, name, value)
    return path
