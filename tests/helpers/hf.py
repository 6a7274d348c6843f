"""The tiny model as a directory that transformers would read, by a writer of the tests' own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.helpers.tiny import TinyModel, printable

_HF_PARTS = {"attn_norm": "ln_1", "ffn_norm": "ln_2", "attn_qkv": "attn.c_attn"}
_HF_PARTS |= {"attn_output": "attn.c_proj", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_HF_GLOBAL = {"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"}


def hf_name(name: str) -> str:
    """`blk.0.ffn_up.weight` as `transformer.h.0.mlp.c_fc.weight`."""
    *path, kind = name.split(".")
    if path == ["output"]:
        return "lm_head.weight"
    if len(path) == 1:
        return f"transformer.{_HF_GLOBAL[path[0]]}.{kind}"
    return f"transformer.h.{path[1]}.{_HF_PARTS[path[2]]}.{kind}"


def hf_config(model: TinyModel) -> dict[str, Any]:
    """config.json as transformers writes it."""
    return {
        "architectures": ["GPTBigCodeForCausalLM"],
        "model_type": "gpt_bigcode",
        "activation_function": "gelu_pytorch_tanh",
        "bos_token_id": 0,
        "eos_token_id": 0,
        "layer_norm_epsilon": 1e-5,
        "multi_query": model.n_kv_heads == 1,
        "n_embd": model.dim,
        "n_head": model.n_heads,
        "n_inner": None,
        "n_layer": model.n_layers,
        "n_positions": model.n_ctx,
        "scale_attn_weights": True,
        "tie_word_embeddings": "output.weight" not in model.weights,
        "vocab_size": model.n_vocab,
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
    return {hf_name(name): np.ascontiguousarray(a) for name, a in model.weights.items()}


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
