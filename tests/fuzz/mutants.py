"""Damaged models for `fuzz`: files that are nearly right, each made from a seed.

A model is a table of file names and bytes. Structural damage knows where the numbers of a format
stand; semantic damage writes a whole, valid file that says something untrue.
"""

from __future__ import annotations

import functools
import json
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from starcoder.core.tensor import TensorType
from tests.fuzz.damage import (
    EDGES,
    damage_bytes,
    damage_json,
    gguf_fields,
    header_fields,
    legacy_fields,
)
from tests.fuzz.mutant_folders import disagree, older_vocab
from tests.helpers.gguf import GGUF_TYPES, GGUFTensor, Value, gguf_keys, gguf_tensors, write_gguf
from tests.helpers.gguf_parts import U16, raw_keys, split
from tests.helpers.hf import write_hf
from tests.helpers.legacy import as_f32, write_legacy
from tests.helpers.tiny import TinyModel, make_tiny
from tests.helpers.torch_file import number, storage, table, tensor, write_hf_bin, write_zip
from tests.helpers.weights import random_tensor

Files = dict[str, bytes]


def make(write: Callable[[Path], Path]) -> Files:
    """The files that `write` makes in an empty folder, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "m")
        return {
            p.name: p.read_bytes() for p in (sorted(path.iterdir()) if path.is_dir() else [path])
        }


# ------------------------------------------------------------------------------------------------
# GGUF and legacy files


@functools.cache
def _good_gguf(version: int) -> tuple[bytes, list[tuple[int, int]]]:
    raw = make(lambda path: write_gguf(path, make_tiny(), version=version))["m"]
    return raw, gguf_fields(raw)


@functools.cache
def _good_legacy() -> tuple[bytes, list[tuple[int, int]]]:
    raw = make(lambda path: write_legacy(path, make_tiny()))["m"]
    return raw, legacy_fields(raw)


def untrue(rng: random.Random) -> TinyModel:
    """A model whose numbers contradict its weights, or are of another kind."""
    model = make_tiny(rng.randrange(4), n_kv_heads=rng.choice((1, 4)), tied=rng.random() < 0.7)
    for _ in range(rng.choice((0, 0, 1, 2))):
        name = rng.choice(("n_vocab", "n_ctx", "dim", "hidden_dim", "n_heads", "n_layers"))
        small = (1, 2, 3, 5, 16, 31, 33, 319, 321, 1000, getattr(model, name) + 1)
        changed: dict[str, Any] = {name: rng.choice(small)}
        model = replace(model, **changed)
    for _ in range(rng.choice((0, 0, 1, 2))):
        name = rng.choice(list(model.weights))
        array = model.weights[name]
        change = rng.choice(("drop", "flip", "nan", "huge", "rows", "flat"))
        if change == "drop":
            del model.weights[name]
        elif change == "flip":
            model.weights[name] = np.ascontiguousarray(array.T)
        elif change == "rows":
            model.weights[name] = array[: rng.randrange(len(array))]
        elif change == "flat":
            model.weights[name] = array.reshape(-1)
        else:
            filler = np.nan if change == "nan" else np.inf if rng.random() < 0.5 else 1e38
            model.weights[name] = np.full_like(array, filler)
    return model


_SMALL_BLOCKS = [kind for kind in TensorType if kind.block_len <= 32]


def _quantized(array: np.ndarray, rng: random.Random) -> tuple[int, bytes]:
    """Another type for a matrix; sometimes one that its rows do not fill."""
    if rng.random() < (0.2 if array.ndim == 2 else 0.97):
        return as_f32("", array)
    kind = rng.choice(list(TensorType) if rng.random() < 0.1 else _SMALL_BLOCKS)
    if array.ndim != 2 or array.shape[1] % kind.block_len or array.size == 0:
        return rng.choice((kind.value, 0, 1)), np.ascontiguousarray(array, "<f4").tobytes()
    raw = random_tensor(kind, array.shape[0], array.shape[1], seed=rng.randrange(9)).data.tobytes()
    return kind.value, raw


def damage_gguf(rng: random.Random, version: int) -> Files:
    if rng.random() < 0.6:
        return {"m": damage_bytes(*_good_gguf(version), rng)}
    model = untrue(rng)
    keys: dict[str, Value | None] = {}
    names = list(gguf_keys(model))
    for key in rng.sample(names, rng.choice((0, 0, 1, 2))):
        kind = rng.choice([k for k in GGUF_TYPES if k not in ("u8", "i8")])
        edge: Any = rng.choice(EDGES) & 0x7FFFFFFF
        edge = {"str": str(edge), "f32": float(edge), "bool": True}.get(kind, edge)
        keys[key] = rng.choice(
            (None, Value(kind, edge), Value(kind, [edge] * rng.choice((0, 320))))
        )
    tensors = gguf_tensors(model)
    if rng.random() < 0.6:
        tensors = [
            GGUFTensor(t.name, t.shape, *_quantized(model.weights[t.name], rng)) for t in tensors
        ]
    if rng.random() < 0.3:
        rng.shuffle(tensors)
    if tensors and rng.random() < 0.2:
        tensors += rng.choices(tensors)
    return make(lambda path: write_gguf(path, model, version=version, keys=keys, tensors=tensors))


@functools.cache
def _good_raw(merges: str) -> tuple[bytes, list[tuple[int, int]]]:
    keys = raw_keys(make_tiny(), merges)
    raw = make(lambda path: write_gguf(path, make_tiny(), keys=keys))["m"]
    return raw, gguf_fields(raw)


def damage_raw(rng: random.Random) -> Files:
    """Tokens that are bytes: in a damaged file, or a whole one with strange tokens and merges."""
    merges = rng.choice(("byte-level", "raw", "empty", "absent"))
    if rng.random() < 0.5:
        return {"m": damage_bytes(*_good_raw(merges), rng)}
    keys = raw_keys(make_tiny(), merges)
    lists = [keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "merges")]
    texts = rng.choice([value.value for value in lists if value is not None and value.value])
    for _ in range(rng.choice((1, 3, 100))):
        word = rng.choice((b"", b" ", b"\n", b"\0", b"\xff", b"a b", b"  ", b"\xc4\xa0", b"[PAD7]"))
        texts[rng.randrange(len(texts))] = word * rng.choice((1, 1, 2, 300))
    if rng.random() < 0.3:
        kinds = [rng.choice((1, 1, 1, 3, 4, 5)) for _ in range(make_tiny().n_vocab)]
        keys["tokenizer.ggml.token_type"] = Value("i32", kinds)
    return make(lambda path: write_gguf(path, make_tiny(), keys=keys))


@functools.cache
def _good_parts(seed: int, count: int, first: int) -> Files:
    return make(lambda path: (split(path, make_tiny(seed), count, first), path)[1])


def damage_parts(rng: random.Random) -> Files:
    """A model in parts of which one is damaged, lost, of another model or in another's place."""
    count, first = rng.choice((1, 2, 3, 5)), rng.choice((0, 0, 1))
    good = _good_parts(0, max(count, 1 + first), first)
    files = dict(good)
    for _ in range(rng.choice((1, 1, 2))):
        name, other = rng.choice(list(files)), rng.choice(list(files))
        match rng.choice(("bytes", "bytes", "bytes", "mark", "lost", "swap", "foreign", "rename")):
            case "bytes":
                fields = gguf_fields(good[name]) if files[name] == good.get(name) else []
                files[name] = damage_bytes(files[name], fields, rng)
            case "mark":
                mark = rng.choice((b"split.no", b"split.count"))
                edge = U16(rng.choice(EDGES) & 0xFFFF).encode()
                at = files[name].find(mark) + len(mark)
                files[name] = files[name][:at] + edge + files[name][at + len(edge) :]
            case "lost" if len(files) > 1:
                del files[name]
            case "swap" | "lost":
                files[name], files[other] = files[other], files[name]
            case "foreign":
                foreign = _good_parts(1, rng.choice((2, 3)), 0)
                files[name] = rng.choice(list(foreign.values()))
            case _:
                files[name.replace("-00001-", "-00007-")] = files.pop(name)
    names = rng.sample(list(files), len(files))
    return {name: files[name] for name in names}


def damage_legacy(rng: random.Random) -> Files:
    if rng.random() < 0.6:
        return {"m": damage_bytes(*_good_legacy(), rng)}
    model, ftype = untrue(rng), rng.choice((0, 1, 2, 1002, 2002, 2007, 2014, 3000, -1))
    if rng.random() < 0.6:
        return make(
            lambda path: write_legacy(
                path, model, ftype=ftype, encode=lambda _, array: _quantized(array, rng)
            )
        )
    return make(lambda path: write_legacy(path, model, ftype=ftype, encode=as_f32))


# ------------------------------------------------------------------------------------------------
# Directories


def damage_directory(rng: random.Random, files: Files, weights: str) -> Files:
    """A wrong in one or two files: in the JSON values of some, in the bytes of any."""
    files = dict(files)
    names = [n for n in files if rng.random() < 0.5 or n.endswith(weights)]
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2)))):
        if rng.random() < 0.03:
            del files[name]
        elif name.endswith(".json") and rng.random() < 0.8:
            value = damage_json(json.loads(files[name]), rng)
            files[name] = json.dumps(value).encode("utf-8", "surrogatepass")
        else:
            files[name] = damage_bytes(files[name], header_fields(files[name]), rng)
    return files


def damage_safetensors(rng: random.Random, files: Files) -> Files:
    """A header that is JSON still, with one value of it wrong."""
    name = rng.choice([name for name in files if name.endswith(".safetensors")])
    (n,) = struct.unpack_from("<Q", files[name])
    header = json.dumps(damage_json(json.loads(files[name][8 : 8 + n]), rng))
    raw = header.encode("utf-8", "surrogatepass")
    return files | {name: struct.pack("<Q", len(raw)) + raw + files[name][8 + n :]}


def damage_pickle(rng: random.Random) -> Files:
    """A valid ZIP file whose pickle is wrong: in its numbers, its steps or its tensors."""

    def write(path: Path, arrays: Any) -> Path:
        items, raws = {}, {}
        for i, (name, array) in enumerate(arrays.items()):
            items[name] = tensor(storage("Float", str(i), array.size), array.shape)
            raws[str(i)] = np.ascontiguousarray(array).tobytes()
            if rng.random() < 0.05:
                shape = tuple(rng.choice((*array.shape, 0, 1, -1, 1 << 40)) for _ in array.shape)
                kind = rng.choice(("Float", "Half", "BFloat16", "Long", "Double"))
                count, offset = (rng.choice((array.size, 0, 1, -1, 1 << 62)) for _ in range(2))
                items[name] = tensor(storage(kind, str(i), count), shape, offset=offset)
        code = table(items)
        if rng.random() < 0.7:
            steps = b"cosystem\nRQbqrhjXKMJ\x8a\x88\x89N)\x85\x86\x87t}su(." + number(1 << 40)
            changed = bytearray(code)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.choice(steps)
            code = bytes(changed)
        return write_zip(path, bytes(code), raws)

    return make(lambda path: write_hf_bin(path, untrue(rng), write=write))


# ------------------------------------------------------------------------------------------------
# All of them


@functools.cache
def _directories() -> tuple[Files, Files, Files]:
    return (
        make(lambda path: write_hf(path, make_tiny(), n_shards=2)),
        make(lambda path: write_hf(path, make_tiny(tied=False))),
        make(lambda path: write_hf_bin(path, make_tiny(), n_shards=2)),
    )


def _hf(rng: random.Random) -> Files:
    files = _directories()[rng.randrange(2)]
    if rng.random() < 0.3:
        return damage_safetensors(rng, files)
    if rng.random() < 0.2:
        return make(lambda path: write_hf(path, untrue(rng)))
    return damage_directory(rng, files, "")


def _vocab(rng: random.Random) -> Files:
    """The older files of a vocabulary, each as likely wrong as the others."""
    files = older_vocab(_directories()[1])
    weights = files.pop("model.safetensors")
    return damage_directory(rng, files, "") | {"model.safetensors": weights}


def _index(rng: random.Random) -> Files:
    shards, whole, torch_shards = _directories()
    return disagree(rng, shards, [whole, torch_shards])


def _torch(rng: random.Random) -> Files:
    if rng.random() < 0.5:
        return damage_pickle(rng)
    return damage_directory(rng, _directories()[2], ".bin")


FORMATS: dict[str, Callable[[random.Random], Files]] = {
    "gguf-v3": lambda rng: damage_gguf(rng, 3),
    "gguf-v2": lambda rng: damage_gguf(rng, 2),
    "gguf-raw": damage_raw,
    "gguf-parts": damage_parts,
    "legacy": damage_legacy,
    "hf": _hf,
    "pytorch": _torch,
    "hf-vocab": _vocab,
    "hf-index": _index,
}


def mutant(name: str, seed: int) -> Files:
    """Number `seed` of a format's damaged models: always the same."""
    return FORMATS[name](random.Random(f"{name} {seed}"))
