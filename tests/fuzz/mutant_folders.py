"""Folders for `mutants` that disagree with themselves, and the older files of a vocabulary.

Each function takes the files of a good folder, by name, and gives those of another.
"""

from __future__ import annotations

import json
import random
import struct
from typing import Any

from tests.fuzz.damage import WORDS, damage_json

Files = dict[str, bytes]

_NO_FILES = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    b"<!DOCTYPE html><html></html>",
    b"Entry not found",
    b"{}",
    b"x",
)
_PREFIXES = ("", "module.", "transformer.", "base_model.model.transformer.", "v_head.", "..")
_EXTRA = ("v_head.summary.weight", "h.0.attn.bias", "h.0.attn.c_attn.lora_A.weight", "wte.weight")


def older_vocab(files: Files) -> Files:
    """vocab.json, merges.txt and all that may stand beside them, in place of tokenizer.json."""
    table = json.loads(files["tokenizer.json"])
    added = {entry["content"]: entry["id"] for entry in table["added_tokens"]}
    decoder = {str(i): {"content": text, "special": True} for text, i in added.items()}
    template = "{% for m in messages %}{{ m['content'] + '<fim_pad>' }}{% endfor %}"
    merges = "\n".join(["#version: 0.2", *table["model"]["merges"], ""])
    values: dict[str, Any] = {
        "vocab.json": table["model"]["vocab"],
        "added_tokens.json": added | {"<|im_end|>": 310, "[PAD]": 320},
        "special_tokens_map.json": {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "!"},
        "generation_config.json": {"eos_token_id": [0, 310], "bos_token_id": 0},
        "tokenizer_config.json": {
            "added_tokens_decoder": decoder,
            "chat_template": [{"name": "default", "template": template}],
            "eos_token": "<|endoftext|>",
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
        },
    }
    rest = {name: raw for name, raw in files.items() if name != "tokenizer.json"}
    rest |= {name: json.dumps(value).encode() for name, value in values.items()}
    return rest | {"merges.txt": merges.encode(), "chat_template.jinja": template.encode()}


def disagree(rng: random.Random, shards: Files, others: list[Files]) -> Files:
    """Shards with an index, and one to four things that do not go with them.

    `others` are further folders of the same model, from which files may come.
    """
    files = dict(shards)
    for _ in range(rng.randint(1, 4)):
        weights = [n for n in files if n.endswith((".safetensors", ".bin"))]
        name = rng.choice(weights or ["model.safetensors"])
        match rng.choice(("lose", "copy", "index", "index", "index", "no file", "other", "names")):
            case "lose":
                files.pop(rng.choice((name, "model.safetensors.index.json")), None)
            case "copy" if name in files:
                i, n = rng.randint(1, 4), rng.randint(1, 4)
                suffix = name.rpartition(".")[2]
                stem = "model" if suffix == "safetensors" else "pytorch_model"
                new = rng.choice((f"{stem}-{i:05}-of-{n:05}.{suffix}", f"{stem}.{suffix}"))
                files[new] = files[name]
            case "index":
                _damage_index(rng, files)
            case "no file":
                files[name] = rng.choice(_NO_FILES)
            case "other":
                other = rng.choice(others)
                files |= {n: raw for n, raw in other.items() if rng.random() < 0.7}
            case "names" if name.endswith(".safetensors"):
                files[name] = _rename(rng, files.get(name, b""))
    return files


def _damage_index(rng: random.Random, files: Files) -> None:
    name = rng.choice(("model.safetensors", "pytorch_model.bin")) + ".index.json"
    try:
        table = json.loads(files[name])
        placed = table["weight_map"]
    except (KeyError, TypeError, ValueError):
        return
    if type(placed) is not dict or rng.random() < 0.2:
        files[name] = json.dumps(damage_json(table, rng)).encode("utf-8", "surrogatepass")
        return
    for _ in range(rng.choice((1, 1, 3, 30))):
        tensor = rng.choice([*placed, "lm_head.weight", "x"])
        places = ["model-00001-of-00003.safetensors", "model.safetensors", *files]
        placed[tensor] = rng.choice([*places, rng.choice(WORDS)])
        if rng.random() < 0.4:
            del placed[tensor]
    files[name] = json.dumps(table).encode("utf-8", "surrogatepass")


def _rename(rng: random.Random, raw: bytes) -> bytes:
    """A safetensors file with a prefix before all names, or another name for one."""
    if len(raw) < 8 or struct.unpack_from("<Q", raw)[0] > len(raw) - 8:
        return raw
    (n,) = struct.unpack_from("<Q", raw)
    table = json.loads(raw[8 : 8 + n])
    if rng.random() < 0.5:
        prefix = rng.choice(_PREFIXES)
        table = {prefix + name.removeprefix("transformer."): v for name, v in table.items()}
    elif table:
        name = rng.choice(list(table))
        table[rng.choice(_PREFIXES) + rng.choice(_EXTRA)] = table.pop(name)
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + raw[8 + n :]
