"""Vocabularies in GGUF files as other programs, and older ones, wrote them."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from starcoder import LLM, FormatError, InputError, formats
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.command import Run
from tests.helpers.gguf import Value, gguf_keys, write_gguf
from tests.helpers.gguf_parts import raw_keys
from tests.helpers.hf import write_hf
from tests.helpers.legacy import write_legacy
from tests.helpers.run_model import written
from tests.helpers.tiny import TinyModel

PREFIX = "tokenizer.ggml"


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
