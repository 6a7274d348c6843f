"""What we write is what was read, in the bytes of ggml and llama.cpp, and nothing is lost."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from starcoder import formats
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import WriteError
from starcoder.formats.io import atomic
from starcoder.formats.io.atomic import write_file
from tests.helpers.gguf import Value, write_gguf
from tests.helpers.hf import hf_tokenizer, write_hf
from tests.helpers.legacy import write_legacy
from tests.helpers.tiny import TinyModel, make_tiny


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_a_model_survives_both_formats(tmp_path: Path, n_kv_heads: int, tied: bool) -> None:
    model = make_tiny(n_kv_heads=n_kv_heads, tied=tied)
    first = formats.read(write_gguf(tmp_path / "first.gguf", model))
    formats.write(tmp_path / "legacy.bin", first, legacy=True)
    legacy = formats.read(tmp_path / "legacy.bin")
    formats.write(tmp_path / "last.gguf", legacy)
    assert formats.read(tmp_path / "last.gguf") == legacy == first


def test_every_source_becomes_the_same_gguf(tmp_path: Path, tiny: TinyModel) -> None:
    wanted = formats.read(write_gguf(tmp_path / "gguf", tiny))
    for path in (write_legacy(tmp_path / "legacy", tiny), write_hf(tmp_path / "hf", tiny)):
        formats.write(tmp_path / "out.gguf", formats.read(path))
        assert formats.read(tmp_path / "out.gguf") == wanted


def test_legacy_files_hold_neither_more_nor_less(tmp_path: Path, tiny: TinyModel) -> None:
    wanted = write_legacy(tmp_path / "wanted.bin", tiny)
    formats.write(tmp_path / "found.bin", formats.read(wanted), legacy=True)
    found = formats.read(tmp_path / "found.bin")
    assert found == formats.read(wanted)
    assert (tmp_path / "found.bin").stat().st_size == wanted.stat().st_size


def test_the_gguf_package_reads_our_files(tmp_path: Path, tiny: TinyModel) -> None:
    """Another reader finds all that llama.cpp asks for, and the same weights."""
    path = tmp_path / "out.gguf"
    checkpoint = formats.read(write_gguf(tmp_path / "in.gguf", tiny))
    n_bytes = formats.write(path, checkpoint)
    assert path.stat().st_size == n_bytes
    reader = gguf.GGUFReader(path)
    found = {key: field.contents() for key, field in reader.fields.items()}
    for key, value in {
        "general.architecture": "starcoder",
        "general.name": "tiny",
        "general.file_type": 0,
        "general.quantization_version": 2,
        "starcoder.context_length": 16,
        "starcoder.attention.head_count_kv": 1,
        "starcoder.activation_function": "gelu_pytorch_tanh",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "refact",
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.fim_pre_token_id": 1,
        "tokenizer.ggml.fim_mid_token_id": 2,
        "tokenizer.ggml.fim_suf_token_id": 3,
        "tokenizer.ggml.fim_pad_token_id": 4,
    }.items():
        assert found[key] == value, key
    assert "tokenizer.ggml.fim_rep_token_id" not in found  # the tiny model has no such token
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert (tokens[0], kinds[0]) == ("<|endoftext|>", 3)
    assert (tokens[-1], kinds[-1]) == ("[PAD319]", 5)
    assert (tokens[5 + ord(" ")], kinds[5 + ord(" ")]) == ("Ġ", 1)
    for tensor in reader.tensors:
        assert tensor.data_offset % 32 == 0
        wanted = tiny.weights[tensor.name]
        assert np.array_equal(tensor.data.reshape(wanted.shape), wanted)


def test_both_spellings_of_fill_in_the_middle_get_their_ids(tmp_path: Path) -> None:
    names = ("<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>")
    model = make_tiny()
    model.specials, model.tokens[:5] = names, [name.encode() for name in names]
    formats.write(tmp_path / "x.gguf", formats.read(write_gguf(tmp_path / "in", model)))
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    ids = {n: fields[f"tokenizer.ggml.fim_{n}_token_id"].contents() for n in ("pre", "suf", "mid")}
    assert ids == {"pre": 1, "suf": 3, "mid": 2}


def test_erf_gelu_and_whole_numbers_survive(tmp_path: Path, tiny: TinyModel) -> None:
    splitter = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    tokenizer = hf_tokenizer(tiny) | {"pre_tokenizer": splitter}
    config = {"activation_function": "gelu"}
    before = formats.read(write_hf(tmp_path / "hf", tiny, config=config, tokenizer=tokenizer))
    assert (before.config.activation, before.vocab.split_digits) == ("gelu_erf", False)
    formats.write(tmp_path / "x.gguf", before)
    assert formats.read(tmp_path / "x.gguf") == before


def test_other_keys_of_a_gguf_are_carried_over(tmp_path: Path, tiny: TinyModel) -> None:
    template = "{% for message in messages %}{{ message }}{% endfor %}"
    keys = {
        "general.license": Value("str", "bigcode-openrail-m"),
        "general.tags": Value("str", ["code", "größer"]),
        "tokenizer.chat_template": Value("str", template),
        "general.alignment": Value("u32", 64),
    }
    source = write_gguf(tmp_path / "in.gguf", tiny, keys=keys, alignment=64)
    formats.write(tmp_path / "out.gguf", formats.read(source), origin={"x.source": "here"})
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["general.license"].contents() == "bigcode-openrail-m"
    assert fields["general.tags"].contents() == ["code", "größer"]
    assert fields["tokenizer.chat_template"].contents() == template
    assert fields["x.source"].contents() == "here"
    assert "general.alignment" not in fields


def test_a_legacy_file_refuses_what_it_cannot_hold(tmp_path: Path, tiny: TinyModel) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "in.gguf", tiny))
    out = tmp_path / "out.bin"
    for change in ({"activation": "gelu_erf"}, {"norm_eps": 1e-6}, {"hidden_dim": 64}):
        strange = replace(checkpoint, config=replace(checkpoint.config, **change))
        with pytest.raises(WriteError, match="GGUF file instead"):
            formats.write(out, strange, legacy=True)
    short = Tensor(TensorType.F16, (32, 32), np.zeros(2048, np.uint8))
    mixed = dict(checkpoint.tensors) | {"blk.0.attn_output.weight": short}
    with pytest.raises(WriteError, match="F16 and F32"):
        formats.write(out, checkpoint, mixed, legacy=True)
    positions = Tensor(TensorType.BF16, (64, 32), np.zeros(4096, np.uint8))
    odd = dict(checkpoint.tensors) | {"position_embd.weight": positions}
    with pytest.raises(WriteError, match=r"embd\.weight: found BF16, expected F32"):
        formats.write(out, checkpoint, odd, legacy=True)
    assert not out.exists()


@pytest.mark.parametrize("name", ["legacy-f32.bin", "legacy-f16.bin", "legacy-q4_0.bin"])
def test_ggmls_own_files_are_written_again_byte_for_byte(
    oracle: Path, tmp_path: Path, name: str
) -> None:
    formats.write(tmp_path / name, formats.read(oracle / name), legacy=True)
    assert (tmp_path / name).read_bytes() == (oracle / name).read_bytes()


# ------------------------------------------------------------------------------------------------
# The file itself


def written(path: Path, *pieces: bytes) -> None:
    write_file(path, sum(map(len, pieces)), pieces)


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link", b"ne", b"w")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_permissions_are_the_old_files_or_the_users(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old_mask = os.umask(0o027)
    try:
        written(path, b"1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        written(path, b"2")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old_mask)


def test_bad_places_end_in_one_line(tmp_path: Path) -> None:
    for path, reason in {
        tmp_path: "a directory",
        tmp_path / "no" / "x": "no folder",
        Path(os.devnull): "no regular file",
        tmp_path / ("x" * 300): "too long",
    }.items():
        with pytest.raises(WriteError, match=reason) as caught:
            written(path, b"1")
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_the_work(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        raise AssertionError("work began")
        yield b""

    with pytest.raises(WriteError, match="bytes free, expected room for 1,152,921"):
        write_file(tmp_path / "x", 1 << 60, pieces())


def test_a_file_of_another_length_never_gets_the_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(WriteError, match="3 bytes written where 4 were due"):
        write_file(tmp_path / "x", 4, [b"new"])
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_an_error_in_making_the_bytes_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("lost")

    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(ValueError, match="lost"):
        write_file(tmp_path / "x", 3, pieces())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a limit of processes is reached."""

    def start(self: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)


def test_without_a_thread_the_same_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_threads(monkeypatch)
    monkeypatch.setattr(atomic, "_BEGIN_BYTES", 3)
    monkeypatch.setattr(atomic, "_WAIT_BYTES", 4)
    told: list[int] = []
    write_file(tmp_path / "x", 6, [b"ab", np.frombuffer(b"cde", np.uint8), b"f"], told.append)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"abcdef"
    assert told == [2, 3, 1]


def test_without_a_thread_errors_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"new"
        raise ValueError("lost")

    no_threads(monkeypatch)
    n_open = len(os.listdir("/dev/fd"))
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(WriteError, match="3 bytes written where 4 were due"):
        write_file(tmp_path / "x", 4, [b"new"])
    with pytest.raises(ValueError, match="lost"):
        write_file(tmp_path / "x", 3, pieces())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    assert len(os.listdir("/dev/fd")) == n_open
