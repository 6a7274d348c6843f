"""Models whose small print is large: each asks for far more memory or time than it has bytes."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

from tests.fuzz.mutant_folders import older_vocab
from tests.fuzz.mutants import Files, make, mutant
from tests.helpers.gguf import GGUFTensor, Value, write_gguf
from tests.helpers.hf import hf_tokenizer, write_hf
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import make_tiny, printable
from tests.helpers.torch_file import TABLE, text, write_zip

Bomb = Callable[[random.Random, int], Files]


def _gguf(keys: dict[str, Value | None], tensors: list[GGUFTensor] | None = None) -> Files:
    return make(lambda path: write_gguf(path, make_tiny(), keys=keys, tensors=tensors))


def gguf_strings(rng: random.Random, n: int) -> Files:
    names = ("x", "tokenizer.ggml.tokens", "tokenizer.ggml.merges", "general.name")
    item = rng.choice(("", "a", "a b", "Ġ" * 50))
    return _gguf({rng.choice(names): Value("str", [item] * (n // (8 + len(item))))})


def gguf_numbers(rng: random.Random, n: int) -> Files:
    names = ("x", "tokenizer.ggml.token_type", "tokenizer.ggml.tokens")
    return _gguf({rng.choice(names): Value(rng.choice(("u8", "i32")), [1] * (n // 4))})


def gguf_keys(rng: random.Random, n: int) -> Files:
    value = rng.choice((Value("u8", 1), Value("str", ""), Value("u8", [])))
    return _gguf({f"{i:x}": value for i in range(min(n // 20, 10_000))})


def gguf_tensors(rng: random.Random, n: int) -> Files:
    shape = (0,) * rng.choice((1, 4))
    # the writers of conftest copy what they have for each entry
    count = min(n // (40 + 8 * len(shape)), 10_000)
    return _gguf({}, [GGUFTensor(f"{i:x}", shape, 0, b"") for i in range(count)])


def vocabularies(rng: random.Random, n: int) -> Files:
    """Tokens that can be built in very many ways, in files that load."""
    model = make_tiny()
    length = rng.choice((2, 3, 30, 1000, 4096))
    letters = rng.choice((b"a", b"ab", bytes(range(97, 123))))
    count = min(n // (length + 4), 20_000)
    extra = {bytes(rng.choices(letters, k=rng.randint(2, length))) for _ in range(count)}
    model.tokens = [*model.tokens[:261], *sorted(extra, key=len)]
    model.merges, model.n_vocab = [], len(model.tokens)
    if rng.random() < 0.5:
        return make(lambda path: write_legacy(path, model))
    special = rng.choice((1, 3))
    kinds = [3] * 5 + [1] * 256 + [special] * (model.n_vocab - 261)
    texts = [*model.specials, *map(printable, model.tokens[5:])]
    keys: dict[str, Value | None] = {"tokenizer.ggml.tokens": Value("str", texts)}
    keys |= {"tokenizer.ggml.token_type": Value("i32", kinds)}
    keys |= {"tokenizer.ggml.merges": Value("str", ["a a"] * rng.choice((0, n // 11)))}
    return _gguf(keys)


def _directory(**replaced: bytes) -> Files:
    files = next(f for f in (mutant("hf", seed) for seed in range(99)) if "model.safetensors" in f)
    for name, raw in replaced.items():
        files[name.replace("__", ".")] = raw
    if "model__safetensors__index__json" in replaced:
        del files["model.safetensors"]  # beside which no index is read
    return files


def _dense(rng: random.Random, n: int) -> str:
    """JSON of n bytes that makes as many values as can be."""
    item = rng.choice(
        ("[]", "{}", "0.5", "1", '""', '{"":0}', "[[]]", "1" * 300, '"\\u1234"', "null")
    )
    return "[" + ",".join([item] * (n // (len(item) + 1))) + "]"


def json_values(rng: random.Random, n: int) -> Files:
    raw = f'{{"model_type": "gpt_bigcode", "added_tokens": {_dense(rng, n)}}}'.encode()
    name = rng.choice(("config__json", "tokenizer__json", "model__safetensors__index__json"))
    return _directory(**{name: raw})


def json_depth(rng: random.Random, n: int) -> Files:
    opening = rng.choice(("[", '{"a":'))
    name = rng.choice(("config__json", "tokenizer__json", "model__safetensors__index__json"))
    return _directory(**{name: (opening * (n // len(opening))).encode()})


def tokenizers(rng: random.Random, n: int) -> Files:
    """tokenizer.json with very many tokens, merges or added tokens."""
    tokenizer = hf_tokenizer(make_tiny())
    part = rng.choice(("vocab", "merges", "added"))
    count = n // 16
    if part == "vocab":
        tokenizer["model"]["vocab"] = {f"{i:x}": i for i in range(count)}
    elif part == "merges":
        tokenizer["model"]["merges"] = [rng.choice(("a b", ["a", "b"]))] * count
    else:
        entry: Any = {"id": 0, "content": "x" * rng.choice((1, 4000))}
        tokenizer["added_tokens"] = [entry | {"id": i} for i in range(count // 4)]
    return _directory(tokenizer__json=json.dumps(tokenizer).encode())


def older_files(rng: random.Random, n: int) -> Files:
    """vocab.json and its neighbors with very many of what they hold."""
    files = older_vocab(make(lambda path: write_hf(path, make_tiny())))
    count = n // 16
    word = rng.choice(("{{content '<|endoftext|>", "content '<|a", "'user'else", "content|x"))
    values: dict[str, Any] = {
        "vocab.json": {f"{i:x}": i for i in range(count)},
        "added_tokens.json": {f"{i:x}": 320 + i for i in range(count)},
        "special_tokens_map.json": {"additional_special_tokens": [f"{i:x}" for i in range(count)]},
        "generation_config.json": {"eos_token_id": [rng.choice((0, 1 << 99))] * count},
        "tokenizer_config.json": {"chat_template": [word * rng.choice((1, count // 9))] * 9},
        "chat_template.jinja": word * count,
        "merges.txt": rng.choice(("a b\n", "a" * 40 + " b\n", " ", "\n", "a" * 4000)) * count,
    }
    name = rng.choice(list(values))
    value = values[name]
    files[name] = (value if isinstance(value, str) else json.dumps(value)).encode()[: 2 * n]
    return files


def safetensors(rng: random.Random, n: int) -> Files:
    entry = {"dtype": "F32", "shape": [0] * rng.choice((1, 8)), "data_offsets": [0, 0]}
    values: dict[str, Any] = {f"{i:x}": rng.choice((entry, {}, [[]] * 20)) for i in range(n // 80)}
    raw = json.dumps(values).encode() if rng.random() < 0.5 else _dense(rng, n).encode()
    return _directory(model__safetensors=struct.pack("<Q", len(raw)) + raw)


def pickles(rng: random.Random, n: int) -> Files:
    step = rng.choice(
        (b"}", b")", b"(", TABLE, b"N\x85", b")q\0", text("ab"), b"]", b"K\1J\0\0\0\0")
    )
    numbered = b"".join(b")r" + struct.pack("<I", i) for i in range(n // 6))
    code = rng.choice((step * (n // len(step)), numbered))
    zipped = make(lambda path: write_zip(path, code, {}))["m"]
    files = _directory(pytorch_model__bin=zipped)
    return {name: raw for name, raw in files.items() if "safetensors" not in name}


def zips(rng: random.Random, n: int) -> Files:
    name = b"x" * rng.choice((0, 1, 200))
    record = struct.pack("<4s6H3I5H2I", b"PK\1\2", *[0] * 9, len(name), *[0] * 6) + name
    count = min(n // len(record), 65535)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, count * len(record), 34, 0)
    local = b"PK\3\4" + bytes(22) + struct.pack("<2H", len(name), 0) + name
    files = _directory(pytorch_model__bin=local.ljust(34, b"\0") + record * count + end)
    return {name: raw for name, raw in files.items() if "safetensors" not in name}


BOMBS: list[Bomb] = [gguf_strings, gguf_numbers, gguf_keys, gguf_tensors, vocabularies, json_values]
BOMBS += [json_depth, tokenizers, older_files, safetensors, pickles, zips]


def bomb(seed: int) -> Files:
    """Number `seed`: 100 kB to 4 MB, half of them just below a mebibyte."""
    rng = random.Random(f"bomb {seed}")
    n = rng.choice((100_000, 1_000_000, 1_000_000, 4_000_000))
    return BOMBS[seed % len(BOMBS)](rng, n)
