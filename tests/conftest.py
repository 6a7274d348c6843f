"""Fixtures for all tests: a tiny model with random weights, written in every format.

The writers here are the tests' own, plain and complete; the package's readers are held against
them, and against files that other programs wrote (`data`, and `oracle` where it is at hand).
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data() -> Path:
    """Directory of the small files that come with the tests."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Directory of large reference data; tests that need it are skipped where it is absent."""
    path = Path(os.environ.get("STARCODER_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set STARCODER_SHARED")
    return path


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Path:
    """Directory of one small GPTBigCode model in many formats and types, with its logits."""
    return shared / "oracle" / "gpt_bigcode"


# ------------------------------------------------------------------------------------------------
# The tiny model

SPECIALS = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
TEXT = """def add(first, second):
    # größer, naïve
    return first + second

class Number(object):
    def __init__(self, value=2048): self.value = value
"""


def train_merges(text: str, n: int) -> list[tuple[bytes, bytes]]:
    """The first `n` merges of byte-level BPE: each time the most frequent pair."""
    words = [[bytes([c]) for c in word] for word in text.replace(" ", "\0 ").encode().split(b"\0")]
    merges = []
    for _ in range(n):
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        words = [apply_merge(word, best) for word in words]
    return merges


def apply_merge(word: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged, rest = [], word
    while rest:
        n = 2 if tuple(rest[:2]) == pair else 1
        merged.append(b"".join(rest[:n]))
        rest = rest[n:]
    return merged


@dataclass
class TinyModel:
    """A GPTBigCode model as plain arrays, under canonical names."""

    merges: list[tuple[bytes, bytes]]
    tokens: list[bytes]  # without padding
    weights: dict[str, np.ndarray]
    n_vocab: int = 320
    n_ctx: int = 16
    dim: int = 32
    hidden_dim: int = 128
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 1
    specials: tuple[str, ...] = SPECIALS
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


def make_tiny(seed: int = 0, n_kv_heads: int = 1, tied: bool = True) -> TinyModel:
    """A model of 2 layers, 32 dimensions and 320 ids, 11 of them padding."""
    merges = train_merges(TEXT, 48)
    tokens = [name.encode() for name in SPECIALS] + [bytes([i]) for i in range(256)]
    tokens += [left + right for left, right in merges]
    model = TinyModel(merges, tokens, {}, n_kv_heads=n_kv_heads)
    rng, dim = np.random.default_rng(seed), model.dim

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.08).astype(np.float32)

    n_qkv = dim + 2 * n_kv_heads * model.head_dim
    shapes = {"attn_qkv": (n_qkv, dim), "attn_output": (dim, dim)}
    shapes |= {"ffn_up": (model.hidden_dim, dim), "ffn_down": (dim, model.hidden_dim)}
    weights = {"token_embd.weight": normal(model.n_vocab, dim)}
    weights["position_embd.weight"] = normal(model.n_ctx, dim)
    norms = ["output_norm"]
    for i in range(model.n_layers):
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
        for name, shape in shapes.items():
            weights[f"blk.{i}.{name}.weight"] = normal(*shape)
            weights[f"blk.{i}.{name}.bias"] = normal(shape[0])
    for norm in norms:
        weights |= {f"{norm}.weight": 1 + normal(dim), f"{norm}.bias": normal(dim)}
    if not tied:
        weights["output.weight"] = normal(model.n_vocab, dim)
    model.weights = weights
    return model


@pytest.fixture
def tiny() -> TinyModel:
    """A fresh tiny model: multi-query attention, tied output; tests may change it."""
    return make_tiny()


# ------------------------------------------------------------------------------------------------
# Byte-level text


def _alphabet() -> list[str]:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte if byte in kept else next(rest)) for byte in range(256)]


ALPHABET = _alphabet()


def printable(raw: bytes) -> str:
    """Bytes as GPT-2 writes them in vocabularies."""
    return "".join(ALPHABET[byte] for byte in raw)


# ------------------------------------------------------------------------------------------------
# GGUF

GGUF_TYPES = {"u8": 0, "i8": 1, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "u64": 10}
_PACK = {0: "<B", 1: "<b", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q"}


@dataclass
class Value:
    """A metadata value with its type; a list is an array."""

    type: str
    value: Any

    def encode(self) -> bytes:
        number = GGUF_TYPES[self.type]
        if isinstance(self.value, list):
            head = struct.pack("<IIQ", 9, number, len(self.value))
            return head + b"".join(self._item(number, item) for item in self.value)
        return struct.pack("<I", number) + self._item(number, self.value)

    @staticmethod
    def _item(number: int, item: Any) -> bytes:
        if number == 8:
            raw = item if isinstance(item, bytes) else item.encode()
            return struct.pack("<Q", len(raw)) + raw
        return struct.pack(_PACK[number], item)


def gguf_keys(model: TinyModel) -> dict[str, Value]:
    """The metadata that llama.cpp's converter writes."""
    n_special, n_pads = len(model.specials), model.n_vocab - len(model.tokens)
    texts = [*model.specials, *map(printable, model.tokens[n_special:])]
    texts += [f"[PAD{i}]" for i in range(len(texts), model.n_vocab)]
    kinds = [3] * n_special + [1] * (len(model.tokens) - n_special) + [5] * n_pads
    merges = [f"{printable(left)} {printable(right)}" for left, right in model.merges]
    return {
        "general.architecture": Value("str", "starcoder"),
        "general.name": Value("str", "tiny"),
        "starcoder.context_length": Value("u32", model.n_ctx),
        "starcoder.embedding_length": Value("u32", model.dim),
        "starcoder.feed_forward_length": Value("u32", model.hidden_dim),
        "starcoder.block_count": Value("u32", model.n_layers),
        "starcoder.attention.head_count": Value("u32", model.n_heads),
        "starcoder.attention.head_count_kv": Value("u32", model.n_kv_heads),
        "starcoder.attention.layer_norm_epsilon": Value("f32", 1e-5),
        "tokenizer.ggml.model": Value("str", "gpt2"),
        "tokenizer.ggml.pre": Value("str", "refact"),
        "tokenizer.ggml.tokens": Value("str", texts),
        "tokenizer.ggml.token_type": Value("i32", kinds),
        "tokenizer.ggml.merges": Value("str", merges),
        "tokenizer.ggml.eos_token_id": Value("u32", 0),
        "tokenizer.ggml.bos_token_id": Value("u32", 0),
    }


@dataclass
class GGUFTensor:
    """A tensor as the file states it, so that tests can state something else."""

    name: str
    shape: tuple[int, ...]
    type: int
    data: bytes
    offset: int = -1  # -1: after the one before


def gguf_tensors(model: TinyModel) -> list[GGUFTensor]:
    """All weights as F32."""
    return [
        GGUFTensor(name, array.shape, 0, np.ascontiguousarray(array, "<f4").tobytes())
        for name, array in model.weights.items()
    ]


def write_gguf(
    path: Path,
    model: TinyModel,
    *,
    version: int = 3,
    keys: Mapping[str, Value | None] | None = None,
    tensors: list[GGUFTensor] | None = None,
    alignment: int = 32,
) -> Path:
    """The model as a GGUF file; `keys` replaces metadata, or removes it with None."""
    table = {k: v for k, v in (gguf_keys(model) | dict(keys or {})).items() if v is not None}
    tensors = gguf_tensors(model) if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(table))
    for key, value in table.items():
        head += struct.pack("<Q", len(key)) + key.encode() + value.encode()
    body = b""
    for t in tensors:
        body += b"\0" * (-len(body) % alignment)
        offset = len(body) if t.offset < 0 else t.offset
        head += struct.pack("<Q", len(t.name)) + t.name.encode()
        head += struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape))
        head += struct.pack("<IQ", t.type, offset)
        body += t.data
    path.write_bytes(head + b"\0" * (-len(head) % alignment) + body)
    return path


# ------------------------------------------------------------------------------------------------
# Legacy ggml

_LEGACY_GLOBAL = {
    "token_embd.weight": "model/wte",
    "position_embd.weight": "model/wpe",
    "output_norm.weight": "model/ln_f/g",
    "output_norm.bias": "model/ln_f/b",
    "output.weight": "model/lm_head",
}
_LEGACY_LAYER = {"attn_norm": "ln_1", "ffn_norm": "ln_2"}
_LEGACY_LINEAR = {"attn_qkv": "attn/c_attn", "attn_output": "attn/c_proj"}
_LEGACY_LINEAR |= {"ffn_up": "mlp/c_fc", "ffn_down": "mlp/c_proj"}


def legacy_name(name: str) -> str:
    """`blk.0.ffn_up.weight` as `model/h0/mlp/c_fc/w`."""
    if name in _LEGACY_GLOBAL:
        return _LEGACY_GLOBAL[name]
    _, i, part, kind = name.split(".")
    if part in _LEGACY_LAYER:
        return f"model/h{i}/{_LEGACY_LAYER[part]}/{'g' if kind == 'weight' else 'b'}"
    return f"model/h{i}/{_LEGACY_LINEAR[part]}/{kind[0]}"


def tile_heads(model: TinyModel, qkv: np.ndarray) -> np.ndarray:
    """Multi-query rows with the key head and the value head repeated for every query head."""
    q, k, v = np.split(qkv, [model.dim, model.dim + model.head_dim])
    return np.concatenate([q, *[k] * model.n_heads, *[v] * model.n_heads])


Encode = Callable[[str, np.ndarray], tuple[int, bytes]]


def as_f32(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """ggml's number for F32, and the bytes."""
    return 0, np.ascontiguousarray(array, "<f4").tobytes()


def write_legacy(path: Path, model: TinyModel, *, ftype: int = 0, encode: Encode = as_f32) -> Path:
    """The model as ggml's example wrote it; `encode` gives the type and bytes of a tensor."""
    header = (model.n_vocab, model.n_ctx, model.dim, model.n_heads, model.n_layers, ftype)
    out = struct.pack("<I6ii", 0x67676D6C, *header, model.n_vocab)
    for raw in model.tokens + model.tokens[-1:] * (model.n_vocab - len(model.tokens)):
        out += struct.pack("<I", len(raw)) + raw
    for name, array in model.weights.items():
        if "attn_qkv" in name and model.n_kv_heads == 1:
            array = tile_heads(model, array)
        number, raw = encode(name, array)
        old = legacy_name(name).encode()
        out += struct.pack("<3i", array.ndim, len(old), number)
        out += struct.pack(f"<{array.ndim}i", *reversed(array.shape)) + old + raw
    path.write_bytes(out)
    return path


# ------------------------------------------------------------------------------------------------
# Hugging Face

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
    names, placed = sorted(arrays), {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        placed |= dict.fromkeys(names[i::n_shards], shard)
        save_file({name: arrays[name] for name in names[i::n_shards]}, path / shard)
    index = {"metadata": {}, "weight_map": placed}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


WRITERS: dict[str, Callable[[Path, TinyModel], Path]] = {
    "gguf": write_gguf,
    "legacy": write_legacy,
    "hf": write_hf,
}


@pytest.fixture(params=sorted(WRITERS))
def tiny_path(request: pytest.FixtureRequest, tmp_path: Path, tiny: TinyModel) -> Path:
    """The tiny model on disk, in each format in turn."""
    return WRITERS[request.param](tmp_path / request.param, tiny)


# ------------------------------------------------------------------------------------------------
# The command line


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command with these arguments, in this process."""

    def run(*args: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["starcoder", *args])
        from starcoder.cli import main

        with pytest.raises(SystemExit) as exit_:
            main()
        return Result(exit_.value.code, *capfd.readouterr())

    return run
