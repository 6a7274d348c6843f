"""Hugging Face directories of `GPTBigCodeForCausalLM`. Reading only.

config.json gives the shapes, tokenizer.json the vocabulary; the weights are in safetensors files
or, where there are none, in PyTorch's: one file, or shards and an index that says which tensor is
in which.

Nothing in a directory is executed: no code, no regular expression, and of a pickle only what makes
tensors. Unknown keys of config.json are ignored. Tensors stay in the mapped files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from starcoder.checkpoint import Checkpoint
from starcoder.config import ACTIVATION_NAMES, ModelConfig
from starcoder.formats._bytes import load_json, reject, settle, shown
from starcoder.formats._safetensors import Stored, read_safetensors
from starcoder.formats._tokenizer_json import read_vocab
from starcoder.formats._torch import read_torch
from starcoder.tensor import Tensor, TensorType
from starcoder.vocab import Vocab

__all__ = ["read"]

_MAX_INTEGER = 1 << 63
_MAX_JSON = 1 << 20  # config and index: StarCoder's have 50 kB
_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}
_GPT2_END = 50256
_MASKS = (".attn.bias", ".attn.masked_bias")  # constants that old versions saved with the weights

_GLOBAL = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def read(path: Path) -> Checkpoint:
    """The model in a directory with config.json, tokenizer.json and safetensors files.

    Raises:
        FormatError: a file that is missing, or anything in one that is not as it should be.
    """
    settings = _Settings(path / "config.json")
    config = _config(settings)
    vocab = read_vocab(path / "tokenizer.json", config.n_vocab)
    ids = {name: _token_id(settings, f"{name}_token_id", vocab) for name in ("eos", "bos")}
    vocab = replace(vocab, eos_id=ids["eos"], bos_id=ids["bos"])
    tensors = _untie(path, settings, _rename(path, config, _weights(path)))
    tensors = settle(tensors, str(path))
    if config.n_kv_heads != 1:
        tensors |= _group_heads(path, config, tensors)
    return Checkpoint(config, vocab, tensors, "Hugging Face", str(path))


# ------------------------------------------------------------------------------------------------
# Configuration


class _Settings:
    """config.json; each accessor demands the type that it returns."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, load_json(path, _MAX_JSON)

    def get(self, key: str, kind: type, default: Any) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not kind:
            reject(self.path, key, repr(value)[:80], f"a value of type {kind.__name__}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        value: int = self.get(key, int, default)
        if abs(value) >= _MAX_INTEGER:
            reject(self.path, key, "a number of more than 64 bits", "a smaller one")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value: bool = self.get(key, bool, default)
        return value

    def demand(self, key: str, default: Any, accepted: tuple[Any, ...]) -> Any:
        """The value of `key`, which must be one that we can compute with."""
        value = self.values.get(key, default)
        if not any(value is a or (type(value) is type(a) and value == a) for a in accepted):
            expected = " or ".join(map(repr, accepted))
            reject(
                self.path, key, repr(value)[:80], expected, "this kind of model is not supported"
            )
        return value


def _config(settings: _Settings) -> ModelConfig:
    settings.demand("model_type", None, ("gpt_bigcode",))
    settings.demand("scale_attn_weights", True, (True,))
    activation = settings.demand(
        "activation_function", "gelu_pytorch_tanh", tuple(ACTIVATION_NAMES)
    )
    dim, n_heads = settings.integer("n_embd"), settings.integer("n_head")
    n_kv_heads = 1 if settings.flag("multi_query", True) else n_heads
    settings.demand("num_key_value_heads", n_kv_heads, (n_kv_heads, None))
    return ModelConfig(
        architecture="gpt_bigcode",
        n_ctx=settings.integer("n_positions"),
        n_vocab=settings.integer("vocab_size"),
        dim=dim,
        hidden_dim=settings.integer("n_inner", 4 * dim),
        n_layers=settings.integer("n_layer"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        norm_eps=settings.get("layer_norm_epsilon", float, 1e-5),
        activation=ACTIVATION_NAMES[activation],
        name=shown(settings.get("_name_or_path", str, "")) or settings.path.parent.name,
        source=str(settings.path),
    )


def _token_id(settings: _Settings, key: str, vocab: Vocab) -> int | None:
    """The id that config.json names.

    tiny_starcoder_py and others of the family still name GPT-2's 50256, which they do not have;
    they mean their own `<|endoftext|>`.
    """
    if settings.values.get(key) is None:
        return None
    token_id, n_vocab = settings.integer(key), len(vocab.tokens)
    if not 0 <= token_id < n_vocab:
        end = vocab.find("<|endoftext|>")
        if token_id != _GPT2_END or end is None:
            reject(settings.path, key, str(token_id), f"an id from 0 to {n_vocab - 1}")
        token_id = end
    return token_id


# ------------------------------------------------------------------------------------------------
# Weights


_KINDS = (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch))


def _weights(path: Path) -> dict[str, Stored]:
    """All tensors of the directory by Hugging Face's names: from one file, or from shards."""
    for name, read_file in _KINDS:
        index = path / f"{name}.index.json"
        if index.exists():
            return _read_shards(path, _shards(index, Path(name).suffix), read_file)
        if (path / name).exists():
            return read_file(path / name)
    return read_safetensors(path / "model.safetensors")  # which says that it is missing


def _read_shards(
    path: Path, placed: dict[str, str], read_file: Callable[[Path], dict[str, Stored]]
) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for shard in sorted(set(placed.values())):
        for name, stored in read_file(path / shard).items():
            if placed.get(name) != shard:
                reject(
                    path / shard, f"tensor {name}", "a place that the index does not give", shard
                )
            tensors[name] = stored
    for name in placed.keys() - tensors.keys():
        reject(path / placed[name], f"tensor {name}", "no such tensor", "what the index names")
    return tensors


def _shards(index: Path, suffix: str) -> dict[str, str]:
    """Tensor name to file name, which must be a plain one in the same directory."""
    placed = load_json(index, _MAX_JSON).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        reject(index, "weight_map", "no table", "tensor names and their files")
    for shard in placed.values():
        plain = isinstance(shard, str) and shard.endswith(suffix)
        if not plain or not set(shard).isdisjoint("/\\:\0") or shard.startswith("."):
            reject(index, "weight_map", repr(shard)[:80], f"the plain name of a {suffix} file")
    return placed


def _rename(path: Path, config: ModelConfig, stored: dict[str, Stored]) -> dict[str, Tensor]:
    names = dict(_GLOBAL)
    for i in range(config.n_layers):
        for old, new in _LAYER.items():
            for part in ("weight", "bias"):
                names[f"transformer.h.{i}.{old}.{part}"] = f"blk.{i}.{new}.{part}"
    tensors: dict[str, Tensor] = {}
    for name, (dtype, shape, data) in stored.items():
        if name.endswith(_MASKS):
            continue
        if name not in names:
            advice = "the weights are of another model than config.json"
            reject(path, f"tensor {name[:80]}", "an unknown name", "a GPTBigCode tensor", advice)
        if dtype not in _TYPES or not shape or 0 in shape:
            reject(path, f"tensor {name}", f"{dtype} {shape}"[:80], "F32, F16 or BF16, not empty")
        tensors[names[name]] = Tensor(_TYPES[dtype], shape, data)
    missing = set(names.values()) - set(tensors) - {"output.weight"}
    if missing:
        reject(path, "weights", f"no {min(missing)}", f"{len(names) - 1} tensors")
    return tensors


def _group_heads(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multi-head attention's projections with their rows in the order Q, K, V.

    Hugging Face keeps the rows of each head together: its Q, its K, its V.
    """
    grouped = {}
    for i in range(config.n_layers):
        for name in (f"blk.{i}.attn_qkv.weight", f"blk.{i}.attn_qkv.bias"):
            tensor = tensors[name]
            if tensor.shape[0] != 3 * config.dim:
                where = f"shape {tensor.shape}"
                reject(
                    path, f"tensor {name}", where, f"{3 * config.dim} rows for multi_query false"
                )
            heads = tensor.data.reshape(config.n_heads, 3, -1)
            data = np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(-1)
            grouped[name] = Tensor(tensor.type, tensor.shape, data)
    return grouped


def _untie(path: Path, settings: _Settings, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the output matrix, if the configuration says that it is the embedding."""
    if settings.flag("tie_word_embeddings", True):
        return {name: tensor for name, tensor in tensors.items() if name != "output.weight"}
    if "output.weight" not in tensors:
        advice = "set tie_word_embeddings if the output matrix is the embedding"
        reject(path, "tensor lm_head.weight", "no such tensor", "an output matrix", advice)
    return tensors
