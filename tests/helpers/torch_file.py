"""What `torch.save` writes, made by hand: the pickle, the ZIP file, a directory of both."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.helpers.hf import hf_weights, write_hf
from tests.helpers.tiny import TinyModel

STORAGES = {"float32": "Float", "float16": "Half", "uint16": "BFloat16", "bool": "Bool"}
STORAGES |= {"uint8": "Byte", "int64": "Long"}

TABLE = b"ccollections\nOrderedDict\n)R"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"
HEAD, END = b"\x80\2" + TABLE + b"(", b"u."


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(kind: str, key: str, count: int) -> bytes:
    """A persistent id: a run of numbers outside the pickle."""
    parts = text("storage") + b"ctorch\n" + kind.encode() + b"Storage\n" + text(key) + text("cpu")
    return b"(" + parts + number(count) + b"tQ"


def tensor(
    stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0
) -> bytes:
    """A call of _rebuild_tensor_v2; rows in order if no `strides` are given."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    parts = stored + number(offset) + numbers(shape) + numbers(strides) + b"\x89" + TABLE
    return TENSOR + b"(" + parts + b"tR"


def table(items: Mapping[str, bytes]) -> bytes:
    """A whole pickle."""
    return HEAD + b"".join(text(name) + value for name, value in items.items()) + END


def write_zip(path: Path, pickle: bytes, storages: Mapping[str, bytes], **extra: bytes) -> Path:
    """The pickle and its storages, each in place on 64 bytes as torch puts them."""
    entries = {"data.pkl": pickle, "byteorder": b"little"}
    entries |= {f"data/{key}": raw for key, raw in storages.items()} | extra | {"version": b"3\n"}
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in entries.items():
            info = zipfile.ZipInfo(f"{path.stem}/{name}")
            assert file.fp is not None
            start = file.fp.tell() + 30 + len(info.filename)
            pad = -(start + 4) % 64
            info.extra = struct.pack("<2H", 0x4246, pad) + b"Z" * pad
            file.writestr(info, raw)
    return path


def write_torch(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Arrays as torch.save writes a state dict; uint16 stands for bfloat16."""
    items, storages = {}, {}
    for i, (name, array) in enumerate(arrays.items()):
        kind = STORAGES[array.dtype.name]
        items[name] = tensor(storage(kind, str(i), array.size), array.shape)
        storages[str(i)] = np.ascontiguousarray(array).tobytes()
    return write_zip(path, table(items), storages)


def write_hf_bin(
    path: Path,
    model: TinyModel,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    n_shards: int = 1,
    write: Callable[[Path, Mapping[str, np.ndarray]], Path] = write_torch,
) -> Path:
    """The model as a Hugging Face directory with PyTorch weights."""
    write_hf(path, model)
    (path / "model.safetensors").unlink()
    arrays = dict(hf_weights(model) if weights is None else weights)
    if n_shards == 1:
        write(path / "pytorch_model.bin", arrays)
        return path
    names, placed = sorted(arrays), dict[str, str]()
    for i in range(n_shards):
        shard = f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin"
        placed |= dict.fromkeys(names[i::n_shards], shard)
        write(path / shard, {name: arrays[name] for name in names[i::n_shards]})
    index = {"metadata": {}, "weight_map": placed}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return path
