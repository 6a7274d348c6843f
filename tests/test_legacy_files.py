"""Legacy ggml files: their versions of quantization, and files that are wrong in one place."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from starcoder import formats
from starcoder.core.tensor import TensorType
from tests.helpers.legacy import as_f32, write_legacy
from tests.helpers.refusals import fails, patched
from tests.helpers.tiny import TinyModel

# ------------------------------------------------------------------------------------------------
# Quantization versions of legacy files


def v1_q4_0(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """Blocks of quantization version 1: f32 scale, then the nibbles. The scale is 0.5."""
    if array.ndim == 1 or name == "position_embd.weight":
        return as_f32(name, array)
    n = array.size // 32
    nibbles = np.resize(np.arange(256, dtype=np.uint8), (n, 16))
    if "attn_qkv" in name:
        nibbles[:] = 7  # all heads equal
    blocks = np.concatenate([np.full((n, 1), 0.5, "<f4").view(np.uint8), nibbles], axis=1)
    return 2, blocks.tobytes()


def v1_q8_0(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """The same for q8_0. The scale is a third: no 16-bit number."""
    if array.ndim == 1 or name == "position_embd.weight":
        return as_f32(name, array)
    return 8, (struct.pack("<f", 1 / 3) + b"\5" * 32) * (array.size // 32)


def test_scales_of_version_1_become_16_bits(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "v1.bin", tiny, ftype=1002, encode=v1_q4_0)
    tensor = formats.read(path).tensors["blk.0.ffn_up.weight"]
    blocks = tensor.data.reshape(-1, 18)
    assert tensor.type is TensorType.Q4_0
    assert set(blocks[:, :2].copy().view("<f2").ravel().tolist()) == {0.5}
    expected = np.resize(np.arange(256, dtype=np.uint8), (len(blocks), 16))
    assert np.array_equal(blocks[:, 2:], expected)


def test_scales_of_version_1_are_rounded_to_nearest(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "v1.bin", tiny, ftype=1007, encode=v1_q8_0)
    blocks = formats.read(path).tensors["token_embd.weight"].data.reshape(-1, 34)
    assert set(blocks[:, :2].copy().view("<f2").ravel().tolist()) == {float(np.float16(1 / 3))}
    assert set(blocks[:, 2:].ravel().tolist()) == {5}


def test_a_scale_beyond_16_bits_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    def large(name: str, array: np.ndarray) -> tuple[int, bytes]:
        number, raw = v1_q4_0(name, array)
        return number, struct.pack("<f", 1e5) + raw[4:] if number == 2 else raw

    path = write_legacy(tmp_path / "v1.bin", tiny, ftype=1002, encode=large)
    fails(path, "model/wte", "scale of 100000", "65504")


def test_quantization_version_0_is_refused_by_name(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "v0.bin", tiny, ftype=2, encode=v1_q4_0)
    fails(path, "Q4_0", "quantization version 0", "convert the original weights again")


@pytest.mark.parametrize("ftype", [0, 1, 1001, 2001])
def test_unquantized_files_are_read_whatever_their_version(
    tmp_path: Path, tiny: TinyModel, ftype: int
) -> None:
    assert formats.read(write_legacy(tmp_path / "m.bin", tiny, ftype=ftype)).type_name == "f32"


# ------------------------------------------------------------------------------------------------
# Legacy files, wrong in one place


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (4, 321, ["320 tokens", "321"]),
        (4, -1, ["n_vocab"]),
        (12, 33, ["n_heads"]),
        (12, 64, ["attn_qkv"]),
        (16, 0, ["n_heads"]),
        (20, 3, ["no blk.2."]),
        (20, 1, ["model/h1"]),
        (20, 2**31 - 1, ["n_layers"]),
        (24, 4, ["ftype"]),
        (24, 3002, ["ftype"]),
        (28, 2**30, ["vocabulary"]),
        (32, 2**31 - 1, ["token 0"]),
        (32, -1, ["token 0"]),
    ],
)
def test_bad_legacy_headers_are_refused(
    tmp_path: Path, tiny: TinyModel, at: int, value: int, words: list[str]
) -> None:
    fails(patched(write_legacy(tmp_path / "bad.bin", tiny), at, "<i", value), *words)


def first_tensor(path: Path) -> int:
    return path.read_bytes().index(b"model/wte") - 20


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        (0, 5, "5 dimensions"),
        (0, 0, "0 dimensions"),
        (0, 2**31 - 1, "dimensions"),
        (1, 0, "name of 0"),
        (1, 2**31 - 1, "name of"),
        (2, 4, "type 4"),
        (2, 30, "type 30"),
        (3, -32, "shape"),
        (3, 0, "shape"),
        (4, 2**31 - 1, "bytes left"),
    ],
)
def test_bad_legacy_tensors_are_refused(
    tmp_path: Path, tiny: TinyModel, field: int, value: int, word: str
) -> None:
    path = write_legacy(tmp_path / "bad.bin", tiny)
    fails(patched(path, first_tensor(path) + 4 * field, "<i", value), word)


def test_legacy_tensors_have_known_names_once_each(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "bad.bin", tiny)
    for old, new in ((b"model/wpe", b"model/wte"), (b"model/wpe", b"model/xyz")):
        bad = tmp_path / "worse.bin"
        bad.write_bytes(path.read_bytes().replace(old, new))
        fails(bad, new.decode(), "once")


def test_bytes_after_the_last_legacy_tensor_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_legacy(tmp_path / "long.bin", tiny)
    path.write_bytes(path.read_bytes() + b"\0" * 64)
    fails(path, "tensor header")
