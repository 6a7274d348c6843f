"""GGUF files as other programs, and older ones, wrote them: they load, and what is odd is said."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import (
    GGUFTensor,
    Run,
    TinyModel,
    Value,
    gguf_keys,
    gguf_tensors,
    make_tiny,
    write_gguf,
    write_hf,
    write_legacy,
)
from gguf_files import raw_keys
from starcoder import LLM, FormatError, InputError, MemoryLimitError, formats, machine, ops
from starcoder.checkpoint import Checkpoint
from starcoder.machine import Room
from starcoder.tensor import Tensor, TensorType
from starcoder.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml"


def logits(path: Path) -> np.ndarray:
    return LLM(path, n_threads=1).logits([7, 40, 261, 262])


def written(path: Path, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, written as GGUF and read back."""
    formats.write(path, checkpoint)
    return formats.read(path)


# ------------------------------------------------------------------------------------------------
# Tensors of any type


def wide() -> TinyModel:
    """A model whose rows and vectors are whole blocks of every type."""
    model, rng = make_tiny(), np.random.default_rng(0)
    model.dim = model.hidden_dim = 256
    qkv = 256 + 2 * model.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, array in model.weights.items():
        rows = qkv if "attn_qkv" in name else 256
        rows = len(array) if name in ("token_embd.weight", "position_embd.weight") else rows
        shapes[name] = (rows, 256) if array.ndim == 2 else (rows,)
    model.weights = {
        name: (rng.standard_normal(shape) * 0.08).astype(np.float32)
        for name, shape in shapes.items()
    }
    return model


def is_vector(name: str, array: np.ndarray) -> bool:
    return array.ndim == 1 or name == "position_embd.weight"


def in_type(kind: TensorType, array: np.ndarray) -> tuple[TensorType, bytes, np.ndarray]:
    """An array in a type, F32 where it is no whole blocks: type, bytes, and what they stand for."""
    if array.shape[-1] % kind.block_len:
        return TensorType.F32, array.tobytes(), array
    tensor = ops.quantize(np.atleast_2d(array), kind)
    return kind, tensor.data.tobytes(), ops.dequantize(tensor).reshape(array.shape)


@pytest.mark.parametrize("kind", TensorType)
def test_norms_biases_and_positions_may_have_any_type(tmp_path: Path, kind: TensorType) -> None:
    model = wide()
    tensors, twin = [], replace(model, weights=dict(model.weights))
    for t in gguf_tensors(model):
        array = model.weights[t.name]
        if is_vector(t.name, array):
            number, raw, twin.weights[t.name] = in_type(kind, array)
            t = replace(t, type=number.value, data=raw)
        tensors.append(t)
    path = write_gguf(tmp_path / "old.gguf", model, tensors=tensors)
    expected = write_gguf(tmp_path / "twin.gguf", twin)
    assert any(t.type == kind for t in tensors)
    found, wanted = formats.read(path), formats.read(expected)
    positions = found.tensors["position_embd.weight"]
    is_kept = kind in (TensorType.F16, TensorType.BF16)  # to be written as it was
    assert positions.type is (kind if is_kept else TensorType.F32)
    if is_kept:
        plain = ops.dequantize(positions).view(np.uint8).reshape(-1)
        as_f32 = Tensor(TensorType.F32, positions.shape, plain)
        found = replace(found, tensors={**found.tensors, "position_embd.weight": as_f32})
    assert found == wanted
    assert np.array_equal(logits(path), logits(expected))


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        (TensorType.F16, b"\x01\x7d"),
        (TensorType.F16, b"\xff\xff"),
        (TensorType.BF16, b"\x81\x7f"),
        (TensorType.F32, b"\x01\x00\x80\x7f"),
        (TensorType.Q8_0, b"\x01\x7d" + bytes(range(32))),
    ],
)
def test_not_a_number_in_a_vector_warns_nobody(
    tmp_path: Path, tiny: TinyModel, kind: TensorType, pattern: bytes
) -> None:
    tensors = gguf_tensors(tiny)
    shape = tensors[1].shape
    raw = pattern * (kind.nbytes(shape) // len(pattern))
    tensors[1] = replace(tensors[1], type=kind.value, data=raw)
    checkpoint = formats.read(write_gguf(tmp_path / "nan.gguf", tiny, tensors=tensors))
    assert np.isnan(ops.dequantize(checkpoint.tensors["position_embd.weight"])).all()


@pytest.mark.parametrize("write", [write_gguf, write_hf, write_legacy])
def test_after_loading_nothing_of_a_file_is_needed(
    tmp_path: Path, tiny: TinyModel, write: Any
) -> None:
    path = write(tmp_path / "m", tiny)
    llm = LLM(path, n_threads=1)
    before = llm.generate("def add(", max_tokens=5, ignore_eos=True).tokens
    for file in [path] if path.is_file() else path.iterdir():
        with file.open("r+b") as raw:
            raw.truncate(0)
    assert llm.generate("def add(", max_tokens=5, ignore_eos=True).tokens == before


def test_more_positions_than_memory_are_refused_unread(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny)
    monkeypatch.setattr(machine, "memory_room", lambda: Room(4000, "memory left in its cgroup"))
    with pytest.raises(MemoryLimitError, match=r"position embeddings of .* at most 4,000"):
        formats.read(path)


# ------------------------------------------------------------------------------------------------
# Tokens as bytes


@pytest.mark.parametrize("merges", ["byte-level", "raw", "empty", "absent"])
def test_tokens_may_be_bytes(tmp_path: Path, tiny: TinyModel, merges: str) -> None:
    expected = formats.read(write_gguf(tmp_path / "new.gguf", tiny))
    path = write_gguf(tmp_path / "raw.gguf", tiny, keys=raw_keys(tiny, merges))
    assert formats.read(path) == expected
    text = "def add(first, second):\n    return größer\t\0 <fim_prefix>"
    assert LLM(path).tokenize(text) == LLM(tmp_path / "new.gguf").tokenize(text)


def test_merges_of_padding_are_none(tmp_path: Path, tiny: TinyModel) -> None:
    keys = raw_keys(tiny, "byte-level")
    merges = keys["tokenizer.ggml.merges"]
    assert merges is not None
    merges.value[3] = " "  # of nothing and nothing
    checkpoint = formats.read(write_gguf(tmp_path / "raw.gguf", tiny, keys=keys))
    assert checkpoint == formats.read(write_gguf(tmp_path / "new.gguf", tiny))
    assert written(tmp_path / "out.gguf", checkpoint) == checkpoint


def test_without_merges_they_follow_from_the_tokens(tmp_path: Path, tiny: TinyModel) -> None:
    expected = formats.read(write_gguf(tmp_path / "with.gguf", tiny))
    keys = {f"{PREFIX}.merges": None}
    assert formats.read(write_gguf(tmp_path / "without.gguf", tiny, keys=keys)) == expected


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_a_file_of_bytes_becomes_one_of_today(
    tmp_path: Path, tiny: TinyModel, run: Run, command: str
) -> None:
    path = write_gguf(tmp_path / "raw.gguf", tiny, keys=raw_keys(tiny, "byte-level"))
    out = tmp_path / "out.gguf"
    options = ("--type", "f32") if command == "convert" else ("f32",)
    assert run(command, str(path), str(out), *options).code == 0
    assert formats.read(out) == formats.read(write_gguf(tmp_path / "new.gguf", tiny))
    assert not formats.read(out).notices


# ------------------------------------------------------------------------------------------------
# Ids of special tokens


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("eos", Value("u32", 320)), ("eos", Value("i32", -1)), ("bos", Value("u64", 1 << 40))),
        *(("unknown", Value("u32", 50257)), ("fim_pre", Value("u32", 999))),
    ],
)
def test_an_id_that_no_token_has_is_said_and_passed_over(
    tmp_path: Path, tiny: TinyModel, name: str, value: Value
) -> None:
    key = f"{PREFIX}.{name}_token_id"
    checkpoint = formats.read(write_gguf(tmp_path / "odd.gguf", tiny, keys={key: value}))
    assert [n for n in checkpoint.notices if key in n and str(value.value) in n]
    kept = {"eos": checkpoint.vocab.eos_id, "bos": checkpoint.vocab.bos_id}
    assert kept == {"eos": 0, "bos": 0} | ({name: None} if name in kept else {})
    assert not written(tmp_path / "again.gguf", checkpoint).notices


def test_ends_that_gpt2_left_mean_the_end_of_text(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {f"{PREFIX}.{name}_token_id": Value("u32", 50256) for name in ("eos", "bos")}
    checkpoint = formats.read(write_gguf(tmp_path / "gpt2.gguf", tiny, keys=keys))
    assert (checkpoint.vocab.eos_id, checkpoint.vocab.bos_id) == (0, 0)
    assert checkpoint.notices == ()


def test_ends_of_turns_and_messages_end_the_text(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {f"{PREFIX}.eot_token_id": Value("u32", 4), f"{PREFIX}.eom_token_id": Value("u32", 3)}
    path = write_gguf(tmp_path / "chat.gguf", tiny, keys=keys)
    vocab = formats.read(path).vocab
    assert vocab.end_ids == {0, 3, 4}
    tiny.weights["output_norm.weight"] *= 0
    tiny.weights["output_norm.bias"] = tiny.weights["token_embd.weight"][4] * 1e3  # the likeliest
    stopped = LLM(write_gguf(path, tiny, keys=keys)).generate("def", max_tokens=9)
    assert (stopped.tokens, stopped.finish_reason) == ((), "stop")


@pytest.mark.parametrize("ends", [{7}, {7, 8}, {7, 8, 9, 300}])
def test_every_end_outlives_conversion(tmp_path: Path, tiny: TinyModel, ends: set[int]) -> None:
    for source in (write_gguf(tmp_path / "m.gguf", tiny), write_hf(tmp_path / "hf", tiny)):
        checkpoint = formats.read(source)
        vocab = replace(checkpoint.vocab, other_end_ids=frozenset(ends))
        once = written(tmp_path / "1.gguf", replace(checkpoint, vocab=vocab))
        twice = written(tmp_path / "2.gguf", once)
        assert once.vocab.end_ids == twice.vocab.end_ids == {0, *ends}


def test_ends_that_no_token_has_are_one_notice(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {"starcoder_py.end_token_ids": Value("i32", [7, -1, 320, 8, 2000])}
    checkpoint = formats.read(write_gguf(tmp_path / "m.gguf", tiny, keys=keys))
    assert checkpoint.vocab.end_ids == {0, 7, 8}
    assert len(checkpoint.notices) == 1


def test_padding_and_chat_template_are_carried(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {
        f"{PREFIX}.padding_token_id": Value("u32", 4),
        "tokenizer.chat_template": Value("str", "{{ messages }}"),
    }
    formats.write(tmp_path / "out", formats.read(write_gguf(tmp_path / "in", tiny, keys=keys)))
    raw = (tmp_path / "out").read_bytes()
    assert b"padding_token_id" + struct.pack("<II", 4, 4) in raw
    assert b"{{ messages }}" in raw


# ------------------------------------------------------------------------------------------------
# A token more than the embedding has rows


def with_tokens(model: TinyModel, *extra: tuple[str, int]) -> dict[str, Value | None]:
    """Keys with more tokens, each with its kind, behind those that have a row."""
    keys = gguf_keys(model)
    texts = keys[f"{PREFIX}.tokens"].value + [text for text, _ in extra]
    kinds = keys[f"{PREFIX}.token_type"].value + [kind for _, kind in extra]
    return {
        f"{PREFIX}.tokens": Value("str", texts),
        f"{PREFIX}.token_type": Value("i32", kinds),
        f"{PREFIX}.padding_token_id": Value("u32", model.n_vocab),
    }


def test_special_tokens_without_a_row_are_left_out(tmp_path: Path, tiny: TinyModel) -> None:
    keys = with_tokens(tiny, ("[PAD]", 3), ("<|user|>", 4), ("unused", 5))
    checkpoint = formats.read(write_gguf(tmp_path / "more.gguf", tiny, keys=keys))
    plain = formats.read(write_gguf(tmp_path / "plain.gguf", tiny))
    assert checkpoint == plain
    assert checkpoint.vocab.unembedded == {b"[PAD]", b"<|user|>"}
    (notice,) = checkpoint.notices
    assert notice.endswith(": [PAD] <|user|>")


def test_text_that_asks_for_such_a_token_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny, keys=with_tokens(tiny, ("[PAD]", 3)))
    with pytest.raises(InputError, match=r"the token '\[PAD\]', which the embedding has no row"):
        LLM(path).generate("def f(x): [PAD]", max_tokens=1)
    tokenizer = Tokenizer(formats.read(path).vocab)
    assert tokenizer.decode(tokenizer.encode("a [PAD]", special=False)) == "a [PAD]"
    assert tokenizer.encode("[PAD", special=True) == tokenizer.encode("[PAD", special=False)


def test_ordinary_tokens_without_a_row_are_an_error(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny, keys=with_tokens(tiny, ("[PAD]", 3), ("ab", 1)))
    with pytest.raises(FormatError, match=r"322 tokens, and number 321, b'ab'.*320"):
        formats.read(path)


# ------------------------------------------------------------------------------------------------
# How text is split


def digits(model: TinyModel) -> TinyModel:
    """The model with a token of two digits."""
    model.tokens.append(b"20")
    model.merges.append((b"2", b"0"))
    return model


@pytest.mark.parametrize("pre", [None, Value("str", "default")])
def test_an_unnamed_pre_tokenizer_is_chosen_by_the_vocabulary(
    tmp_path: Path, tiny: TinyModel, pre: Value | None
) -> None:
    apart = formats.read(write_gguf(tmp_path / "1", tiny, keys={f"{PREFIX}.pre": pre}))
    joined = formats.read(write_gguf(tmp_path / "2", digits(tiny), keys={f"{PREFIX}.pre": pre}))
    assert (apart.vocab.split_digits, joined.vocab.split_digits) == (True, False)
    for checkpoint, how in ((apart, "come apart"), (joined, "stay together")):
        (notice,) = checkpoint.notices
        assert how in notice
        assert "--pre" in notice


def test_a_legacy_file_splits_digits_by_its_vocabulary(tmp_path: Path, tiny: TinyModel) -> None:
    assert formats.read(write_legacy(tmp_path / "1.bin", tiny)).vocab.split_digits
    assert not formats.read(write_legacy(tmp_path / "2.bin", digits(tiny))).vocab.split_digits


def test_pre_overrides_what_the_file_says(tmp_path: Path, tiny: TinyModel) -> None:
    model = digits(tiny)
    unknown = {f"{PREFIX}.pre": Value("str", "llama-bpe")}
    paths = [write_gguf(tmp_path / "1", model, keys=unknown), write_hf(tmp_path / "2", model)]
    for path in (*paths, write_legacy(tmp_path / "3", model)):
        assert len(LLM(path, pre="gpt-2").tokenize("20")) == 1
        assert len(LLM(path, pre="refact").tokenize("20")) == 2
    with pytest.raises(FormatError, match=r"'llama-bpe'.*--pre refact"):
        formats.read(paths[0])
    with pytest.raises(InputError, match="pre: found 'x', expected refact or starcoder or gpt-2"):
        formats.read(paths[0], pre="x")


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "IN", "-p", "20", "-n", "1"),
        ("convert", "IN", "OUT"),
        ("quantize", "IN", "OUT", "q8_0"),
        ("inspect", "IN"),
        ("bench", "-m", "IN", "-p", "2", "-n", "1", "-r", "1", "--json"),
    ],
)
def test_every_command_takes_pre(
    tmp_path: Path, tiny: TinyModel, run: Run, command: tuple[str, ...]
) -> None:
    keys = {f"{PREFIX}.pre": Value("str", "llama-bpe")}
    path = write_gguf(tmp_path / "m.gguf", tiny, keys=keys)
    args = [{"IN": str(path), "OUT": str(tmp_path / "out.gguf")}.get(a, a) for a in command]
    refused = run(*args)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--pre refact" in refused.err
    assert run(*args, "--pre", "gpt-2").code == 0
    if "OUT" in command:
        assert not formats.read(tmp_path / "out.gguf").vocab.split_digits


def test_notices_are_lines_on_stderr(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    path = write_gguf(tmp_path / "m.gguf", tiny, keys={f"{PREFIX}.eos_token_id": Value("u32", 999)})
    result = run("inspect", str(path))
    assert result.code == 0
    assert f"starcoder: note: {path}: {PREFIX}.eos_token_id is 999" in result.err


# ------------------------------------------------------------------------------------------------
# Bounds on the sum


def hollow(path: Path, n_keys: int, key_len: int, text_len: int) -> Path:
    """A file of keys with long texts of which nothing is on the disk."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, n_keys))
        for i in range(n_keys):
            file.write(struct.pack("<Q", key_len) + f"{i:x}".rjust(key_len, "k").encode())
            file.write(struct.pack("<IQ", 8, text_len))
            file.seek(text_len, 1)
        file.truncate(file.tell() + 64)
    return path


@pytest.mark.parametrize(
    ("n_keys", "key_len", "text_len", "reason"),
    [
        (600, 8, 1 << 20, "header: found more than 67108864 bytes"),
        (3, 8, 1 << 30, "header: found more than 67108864 bytes"),
        (500, 65535, 0, "key: found a length of 65535 bytes, expected at most"),
    ],
)
def test_a_header_is_bounded_in_its_sum(
    tmp_path: Path, n_keys: int, key_len: int, text_len: int, reason: str
) -> None:
    path = hollow(tmp_path / "bomb.gguf", n_keys, key_len, text_len)
    tracemalloc.start()
    with pytest.raises(FormatError, match=reason):
        formats.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_legacy_vocabulary_is_bounded_in_its_sum(tmp_path: Path) -> None:
    path, n = tmp_path / "bomb.bin", 1 << 17
    with path.open("wb") as file:
        file.write(struct.pack("<I7i", 0x67676D6C, n, 16, 32, 4, 2, 0, n))
        for _ in range(n):
            file.write(struct.pack("<i", 4096))
            file.seek(4096, 1)
        file.truncate()
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"more bytes than a vocabulary has.* 4194304 in all"):
        formats.read(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


def test_an_unused_token_is_no_part_of_a_merge(tmp_path: Path, tiny: TinyModel) -> None:
    left, right = tiny.merges[11]
    kinds = gguf_keys(tiny)[f"{PREFIX}.token_type"].value
    kinds[tiny.tokens.index(left + right)] = 5
    keys = {f"{PREFIX}.token_type": Value("i32", kinds)}
    with pytest.raises(FormatError, match="merge 11 of"):
        formats.read(write_gguf(tmp_path / "m.gguf", tiny, keys=keys))


def test_texts_that_nobody_asks_for_may_be_anything(tmp_path: Path, tiny: TinyModel) -> None:
    keys = {"x.author": Value("str", b"\xff\xfe" * 1000), "x.long": Value("str", "a" * (2 << 20))}
    path = write_gguf(tmp_path / "m.gguf", tiny, keys=keys)
    assert formats.read(path) == formats.read(write_gguf(tmp_path / "plain.gguf", tiny))


def test_a_tensor_more_than_a_model_has_is_no_matter(tmp_path: Path, tiny: TinyModel) -> None:
    tensors = [*gguf_tensors(tiny), GGUFTensor("rope_freqs.weight", (32,), 0, bytes(128))]
    path = write_gguf(tmp_path / "m.gguf", tiny, tensors=tensors)
    assert np.array_equal(logits(path), logits(write_gguf(tmp_path / "plain.gguf", tiny)))


def test_a_token_without_a_row_stays_an_error_in_every_gguf_file(
    tmp_path: Path, tiny: TinyModel
) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "a.gguf", tiny))
    vocab = replace(checkpoint.vocab, unembedded=frozenset({b"[PAD]"}))
    formats.write(tmp_path / "b.gguf", replace(checkpoint, vocab=vocab))
    formats.write(tmp_path / "c.gguf", formats.read(tmp_path / "b.gguf"))
    found = formats.read(tmp_path / "c.gguf")
    assert found.vocab.unembedded == {b"[PAD]"}
    with pytest.raises(InputError, match=r"\[PAD\]"):
        Tokenizer(found.vocab).encode("x [PAD]")


def test_what_is_carried_is_of_the_file_that_was_read(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny, keys={"general.author": Value("str", "Ada")})
    checkpoint = formats.read(path)
    write_gguf(tmp_path / "new", tiny, keys={"general.author": Value("str", "Bob")})
    (tmp_path / "new").rename(path)
    formats.write(tmp_path / "b.gguf", checkpoint)
    assert b"Ada" in (tmp_path / "b.gguf").read_bytes()
    path.unlink()
    formats.write(tmp_path / "c.gguf", checkpoint)
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
