"""PyTorch's files give the same model as safetensors, and can do nothing but give tensors."""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.core.tensor import TensorType
from starcoder.errors import FormatError
from starcoder.formats.hf.torch import read_torch
from tests.helpers.hf import hf_weights, write_hf
from tests.helpers.tiny import TinyModel, make_tiny
from tests.helpers.torch_file import (
    END,
    HEAD,
    TABLE,
    TENSOR,
    number,
    numbers,
    storage,
    table,
    tensor,
    text,
    write_hf_bin,
    write_torch,
    write_zip,
)

FLOATS = np.arange(6, dtype="<f4").reshape(2, 3)
STORED = {"0": FLOATS.tobytes()}
GOOD = tensor(storage("Float", "0", 6), (2, 3))


def fails(path: Path, *words: str) -> None:
    """Reading ends in a FormatError of one line that names the file and has these words."""
    with pytest.raises(FormatError) as caught:
        read_torch(path)
    message = str(caught.value)
    for word in (path.name, *words):
        assert word in message
    assert message.isprintable()
    assert len(message) < 1000


def fails_with(tmp_path: Path, pickled: bytes, *words: str) -> None:
    fails(write_zip(tmp_path / "m.bin", pickled, STORED), *words)


# ------------------------------------------------------------------------------------------------
# What is read


def test_pytorch_weights_give_the_checkpoint_of_safetensors(tmp_path: Path) -> None:
    for tied in (True, False):
        model = make_tiny(tied=tied)
        expected = formats.read(write_hf(tmp_path / f"safe-{tied}", model))
        assert formats.read(write_hf_bin(tmp_path / f"bin-{tied}", model)) == expected
        assert formats.read(write_hf_bin(tmp_path / f"s-{tied}", model, n_shards=3)) == expected


def test_what_torch_itself_wrote_is_read(oracle: Path) -> None:
    assert formats.read(oracle / "hf-bin") == formats.read(oracle / "hf")


def test_halves_keep_their_type(tmp_path: Path, tiny: TinyModel) -> None:
    for dtype, kind in (("float16", TensorType.F16), ("uint16", TensorType.BF16)):
        arrays = {n: (a * 99).astype(dtype) for n, a in hf_weights(tiny).items()}
        path = write_hf_bin(tmp_path / dtype, tiny, weights=arrays)
        tensor = formats.read(path).tensors["blk.0.ffn_up.weight"]
        assert tensor.type is kind
        assert tensor.data.tobytes() == arrays["transformer.h.0.mlp.c_fc.weight"].tobytes()


def test_masks_of_old_versions_are_left_out(tmp_path: Path, tiny: TinyModel) -> None:
    masks: dict[str, Any] = {"transformer.h.0.attn.bias": np.ones((1, 1, 16, 16), bool)}
    masks["transformer.h.0.attn.masked_bias"] = np.float32(-1e4).reshape(())
    path = write_hf_bin(tmp_path / "m", tiny, weights=hf_weights(tiny) | masks)
    assert formats.read(path) == formats.read(write_hf(tmp_path / "plain", tiny))


def test_weights_stay_in_the_mapped_file(tmp_path: Path) -> None:
    stored = read_torch(write_torch(tmp_path / "m.bin", {"a": FLOATS}))["a"]
    owner: Any = stored.data
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner.obj, mmap.mmap)
    assert stored.shape == (2, 3)
    assert not stored.data.flags.writeable


def test_tensors_may_share_a_storage(tmp_path: Path) -> None:
    shared = storage("Float", "0", 6)
    items = {"whole": tensor(shared, (2, 3)), "row": tensor(shared, (3,), offset=3)}
    found = read_torch(write_zip(tmp_path / "m.bin", table(items), STORED))
    assert found["whole"].data.tobytes() == FLOATS.tobytes()
    assert found["row"].data.tobytes() == FLOATS[1].tobytes()


def test_parameters_and_attributes_of_the_table_are_known(tmp_path: Path) -> None:
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + GOOD + b"\x88" + TABLE + b"tR"
    versions = b"}" + text("_metadata") + TABLE + text("x") + b"}" + text("version") + b"K\1sss"
    pickled = HEAD + text("a") + parameter + b"u" + versions + b"b."
    assert list(read_torch(write_zip(tmp_path / "m.bin", pickled, STORED))) == ["a"]


def test_safetensors_are_taken_where_both_are(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "both", tiny)
    (path / "pytorch_model.bin").write_bytes(b"anything")
    assert formats.read(path).config.n_layers == tiny.n_layers


# ------------------------------------------------------------------------------------------------
# What is never done


class Canary:
    """Pickles to a call of `function`; whoever loads it leaves a file behind."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_no_function_that_a_file_names_is_called(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    attacks: list[Canary] = [Canary(os.system, command), Canary(eval, code), Canary(exec, code)]
    attacks += [Canary(__import__, "os"), Canary(open, str(canary), "w")]
    for attack in attacks:
        for value in (attack, {"a": attack}, OrderedDict(a=attack), [attack], (attack,)):
            fails_with(tmp_path, pickle.dumps(value, protocol), "data.pkl")
    assert not canary.exists()
    pickle.loads(pickle.dumps(attacks[0], protocol))
    assert canary.exists(), "the attack works where pickles are trusted"


@pytest.mark.parametrize(
    "name", ["os system", "builtins eval", "torch load", "torch._utils _rebuild_tensor", " "]
)
def test_names_outside_the_list_are_refused(tmp_path: Path, name: str) -> None:
    spelled = name.replace(" ", "\n").encode() + b"\n"
    fails_with(tmp_path, HEAD + text("a") + b"c" + spelled + b")R" + END, "the name", "safetensors")


@pytest.mark.parametrize(
    "operation", b"iopPISFLVGBTCUHDdle]a0123\x81\x82\x8b\x8c\x92\x93\x94\x95\x97"
)
def test_operations_that_torch_does_not_use_are_refused(tmp_path: Path, operation: int) -> None:
    code = HEAD + text("a") + GOOD + bytes([operation]) + b"\0" * 8 + END
    fails_with(tmp_path, code, "the operation")


def test_only_what_stands_for_a_function_can_be_called(tmp_path: Path) -> None:
    for called in (b"ctorch\nFloatStorage\n", text("os.system"), GOOD, TABLE, b"K\1"):
        fails_with(tmp_path, HEAD + text("a") + called + b")R" + END, "data.pkl")


# ------------------------------------------------------------------------------------------------
# Tensors that lie


@pytest.mark.parametrize(
    "value",
    [
        tensor(storage("Float", "7", 6), (2, 3)),  # no such storage
        tensor(storage("Float", "../0", 6), (2, 3)),
        tensor(storage("Float", "0", 7), (2, 3)),  # more than its entry has
        tensor(storage("Float", "0", 5), (2, 3)),
        tensor(storage("Float", "0", -6), (2, 3)),
        tensor(storage("Float", "0", 1 << 62), (2, 3)),
        tensor(storage("Half", "0", 6), (2, 3)),
        tensor(storage("Double", "0", 3), (3,)),
        tensor(storage("Float", "0", 6), (3, 3)),
        tensor(storage("Float", "0", 6), (2, 3), offset=1),
        tensor(storage("Float", "0", 6), (2, 3), offset=-1),
        tensor(storage("Float", "0", 6), (1 << 61, 3)),
        tensor(storage("Float", "0", 6), (1 << 32, 1 << 32)),
        tensor(storage("Float", "0", 6), (-2, -3)),
        tensor(storage("Float", "0", 6), (2, 3), (1, 2)),  # transposed
        tensor(storage("Float", "0", 6), (2, 3), (0, 0)),  # repeated
        tensor(storage("Float", "0", 6), (2, 3), (1 << 62, 1)),
        tensor(storage("Float", "0", 6), (2, 3), (3,)),
        tensor(storage("Float", "0", 6), (1,) * 9),
        TENSOR + b"(" + GOOD + b"K\0" + numbers((2, 3)) * 2 + b"\x89" + TABLE + b"tR",
        TENSOR + b")R",
        TENSOR + b"(" + storage("Float", "0", 6) + b"tR",
        b"ctorch._utils\n_rebuild_parameter\n(K\1\x88" + TABLE + b"tR",
        number(3),
        text("a text"),
        storage("Float", "0", 6),
        TABLE,
        b"N",
    ],
)
def test_what_is_no_whole_tensor_is_refused(tmp_path: Path, value: bytes) -> None:
    fails_with(tmp_path, table({"a": value}), "data.pkl")


def test_every_prefix_and_every_missing_byte_is_refused(tmp_path: Path) -> None:
    good = table({"a": GOOD})
    for cut in range(len(good)):
        fails_with(tmp_path, good[:cut], "data.pkl")
    fails_with(tmp_path, good + b".", "data.pkl")
    fails_with(tmp_path, table({"a": GOOD})[:-2] + text("a") + GOOD + END, "twice")


# ------------------------------------------------------------------------------------------------
# Bombs


@pytest.mark.parametrize(
    "code",
    [
        b"\x85" * (1 << 19),
        b")" + b"\x85" * (1 << 19) + b".",  # nested tuples
        b"}" * (1 << 20),
        b"(" * (1 << 20),
        b"(" * (1 << 19) + b"t" * (1 << 19) + b".",
        b")" + b"".join(b"q\0h\0\x86" for _ in range(100_000)) + b".",  # a billion laughs
        b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(200_000)),
        b"X\xff\xff\xff\xff" + b"a" * 1000,
        (b"X" + struct.pack("<I", 4096) + b"a" * 4096) * 250,
        b"c" + b"a" * (1 << 20),
        b"\x8a\xff" + b"\xff" * 255 + b".",
        TABLE + b"q\0X\1\0\0\0ah\0s.",  # a table in itself
        b"}" + b"q\0" + b"X\1\0\0\0ah\0s" + b"b" * 100_000,
    ],
)
def test_bombs_end_at_once_and_small(tmp_path: Path, code: bytes) -> None:
    path = write_zip(tmp_path / "m.bin", code[: 1 << 20], STORED)
    tracemalloc.start()
    try:
        fails(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (32 << 20)


def test_a_pickle_of_more_than_a_mebibyte_is_refused(tmp_path: Path) -> None:
    fails_with(tmp_path, b"N" * ((1 << 20) + 1), "at most")


# ------------------------------------------------------------------------------------------------
# The file around it


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", table({"a": GOOD}))
        file.writestr("m/data/0", b"\0" * (64 << 20))
    fails(path, "compressed")


def test_entries_that_come_twice_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", table({"a": GOOD}))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("m/data.pkl", table({"a": GOOD}))
    fails(path, "twice")


def test_entries_over_each_other_are_refused(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "m.bin", table({"a": GOOD}), STORED | {"1": b"\1" * 24})
    raw = bytearray(whole.read_bytes())
    first = raw.rindex(b"m/data/0") - 46
    size, stored = struct.unpack_from("<2I", raw, first + 20)
    struct.pack_into("<2I", raw, first + 20, size + 128, stored + 128)
    whole.write_bytes(raw)
    fails(whole, "overlap")


def test_big_entries_with_64_bit_sizes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as file:
        for entry, content in (("m/data.pkl", table({"a": GOOD})), ("m/data/0", FLOATS.tobytes())):
            file.writestr(entry, content)
    # As torch writes beyond 4 GB: the directory's numbers in an extra field, and an end record.
    raw = path.read_bytes()
    start = raw.index(b"PK\1\2")
    records, place = b"", start
    for _ in range(2):
        fields: list[Any] = list(struct.unpack_from("<4s6H3I5H2I", raw, place))
        name = raw[place + 46 : place + 46 + fields[10]]
        wide = struct.pack("<2H3Q", 1, 24, fields[9], fields[8], fields[16])
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        place += 46 + fields[10]
        fields[11] = len(wide)
        records += struct.pack("<4s6H3I5H2I", *fields) + name + wide
    end = start + len(records)
    tail = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 2, 2, len(records), start)
    tail += struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    tail += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 1 << 32 - 1, 1 << 32 - 1, 0)
    path.write_bytes(raw[:start] + records + tail)
    assert zipfile.ZipFile(path).read("m/data/0") == FLOATS.tobytes()
    assert read_torch(path)["a"].data.tobytes() == FLOATS.tobytes()


def test_files_of_old_versions_get_advice(tmp_path: Path) -> None:
    old = tmp_path / "old.bin"
    old.write_bytes(b"\x80\2\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\2M\xe9\3.")
    fails(old, "before 1.6", "safetensors")
    older = tmp_path / "older.bin"
    with tarfile.open(older, "w") as tar:
        tar.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    fails(older, "before 1.6", "safetensors")


@pytest.mark.parametrize("names", [[], ["m/data"], ["data.pkl"], ["a/data.pkl", "b/data.pkl"]])
def test_zip_files_of_something_else_are_refused(tmp_path: Path, names: list[str]) -> None:
    path = tmp_path / "m.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("b/readme", b"")
        for name in names:
            file.writestr(name, b"N.")
    fails(path)


def test_every_prefix_of_a_file_is_refused(tmp_path: Path) -> None:
    raw = write_torch(tmp_path / "m.bin", {"a": FLOATS}).read_bytes()
    path = tmp_path / "cut.bin"
    for cut in range(1, len(raw), 5):
        path.write_bytes(raw[:cut])
        fails(path)


def test_a_hostile_directory_takes_little_memory(tmp_path: Path) -> None:
    record = struct.pack("<4s6H3I5H2I", b"PK\1\2", *[0] * 9, 0, *[0] * 6)
    path = tmp_path / "m.bin"
    for n in (8000, 60_000):
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, len(record) * n, 4, 0)
        path.write_bytes(b"PK\3\4" + record * n + end)
        tracemalloc.start()
        fails(path)
        assert tracemalloc.get_traced_memory()[1] < (4 << 20)
        tracemalloc.stop()


def test_a_directory_with_a_hostile_pickle_names_the_file(tmp_path: Path, tiny: TinyModel) -> None:
    def attack(path: Path, _: Any) -> Path:
        return write_zip(
            path, HEAD + text("a") + b"cos\nsystem\n" + text("ls") + b"\x85R" + END, {}
        )

    with pytest.raises(FormatError, match=r"pytorch_model\.bin: data\.pkl: found the name"):
        formats.read(write_hf_bin(tmp_path / "hf", tiny, write=attack))
