"""Vocabularies of Hugging Face folders: the older files, and tokens without a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from starcoder import LLM, formats
from starcoder.errors import FormatError
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.hf import hf_tokenizer, merge_lines, put, with_added, write_hf, write_vocab
from tests.helpers.refusals import refused
from tests.helpers.tiny import TinyModel, make_tiny

PROMPT = "def f(x1, größer):\n    return 2048 + 1  # <fim_prefix>"


# ------------------------------------------------------------------------------------------------
# vocab.json and merges.txt


def test_vocab_and_merges_give_the_model_of_tokenizer_json(tmp_path: Path, tiny: TinyModel) -> None:
    whole = write_hf(tmp_path / "whole", tiny)
    path = write_vocab(tmp_path / "hf", tiny)
    found = formats.read(path)
    assert found == formats.read(whole)
    assert "every digit stands apart" in found.notices[0]
    assert LLM(str(path)).tokenize(PROMPT) == LLM(str(whole)).tokenize(PROMPT)
    assert formats.read(path / "vocab.json") == found


@pytest.mark.parametrize("version", [True, False])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("blanks", [0, 1, 3])
def test_merges_are_read_however_their_lines_end(
    tmp_path: Path, tiny: TinyModel, version: bool, end: str, blanks: int
) -> None:
    lines = ["#version: 0.2"] * version + merge_lines(tiny) + [""] * blanks
    path = write_vocab(tmp_path / "hf", tiny, merges=end.join(lines).encode())
    assert formats.read(path) == formats.read(write_hf(tmp_path / "whole", tiny))


def joined_digits() -> TinyModel:
    """A vocabulary with one merge of two digits, as GPT-2's has."""
    model = make_tiny()
    model.merges.append((b"2", b"0"))
    model.tokens.append(b"20")
    return model


@pytest.mark.parametrize("told", [True, False])
def test_digits_that_merges_join_are_split_as_gpt2_splits(tmp_path: Path, told: bool) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer"} if told else {}
    path = write_vocab(
        tmp_path / "hf", joined_digits(), more={"tokenizer_config.json": json.dumps(config)}
    )
    found = formats.read(path)
    assert not found.vocab.split_digits
    assert Tokenizer(found.vocab).encode("2020") == [309, 309]
    assert [("digits are joined" in notice) for notice in found.notices] == [True] * (not told)


def test_added_tokens_come_from_each_file_that_has_them(tmp_path: Path, tiny: TinyModel) -> None:
    n = len(tiny.tokens)
    decoder = {str(n + 1): {"content": "<|user|>", "special": True}, "3": {"content": SUFFIX}}
    vocab = formats.read(
        write_vocab(
            tmp_path / "hf",
            tiny,
            more={
                "added_tokens.json": {"<|system|>": n},
                "tokenizer_config.json": {"added_tokens_decoder": decoder, "eos_token": "!"},
                "special_tokens_map.json": {
                    "pad_token": {"content": "#", "lstrip": False},
                    "additional_special_tokens": ["<|system|>", "%"],
                },
            },
        )
    ).vocab
    assert (vocab.find("<|system|>"), vocab.find("<|user|>")) == (n, n + 1)
    assert None not in map(vocab.find, ("!", "#", "%", *tiny.specials))
    assert vocab.find("$") is None


SUFFIX = "<fim_suffix>"


def test_the_familys_own_tokens_are_special_though_no_file_marks_them(
    tmp_path: Path, tiny: TinyModel
) -> None:
    vocab = formats.read(write_vocab(tmp_path / "hf", tiny)).vocab
    assert vocab.special_ids == set(range(5))


def test_a_special_token_without_an_id_is_dropped_and_said(tmp_path: Path, tiny: TinyModel) -> None:
    more = {"special_tokens_map.json": {"pad_token": "[PAD]"}}
    found = formats.read(write_vocab(tmp_path / "hf", tiny, more=more))
    assert found.vocab.unembedded == {b"[PAD]"}
    assert any("'[PAD]'" in notice for notice in found.notices)


def test_tokenizer_json_comes_first(tmp_path: Path, tiny: TinyModel) -> None:
    path = put(write_hf(tmp_path / "hf", tiny), "vocab.json", "nothing")
    found = formats.read(put(path, "merges.txt", "nothing"))
    assert found.notices == ()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vocab.json", {"a": 320}, "id out of range"),
        ("vocab.json", {"a": "0"}, "id out of range"),
        ("vocab.json", {"a": 1, "b": 1}, "two texts of one id"),
        ("vocab.json", {"a b": 7}, "stands for no byte"),
        ("vocab.json", {"x" * 5000: 7}, "too long"),
        ("vocab.json", {"x" + str(i): i for i in range(321)}, "321 tokens"),
        ("merges.txt", "a b c\n", "'a b c'"),
        ("merges.txt", "a b\n\nc d\n", "two texts and one space"),
        ("merges.txt", "q q\n", "parts and a result"),
        ("merges.txt", "a b\n" * 140_000, "140000 merges"),
        ("merges.txt", b"\xff\xfe", "not UTF-8"),
        ("added_tokens.json", {"x": "0"}, "id 0"),
        ("added_tokens.json", {"x": -1}, "id -1"),
        ("added_tokens.json", {"": 310}, "a text"),
        ("added_tokens.json", {"!": 310}, "another id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, "id x"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"310": {"content": 7}}}, "a text"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"310": None}}, "a text"),
        ("tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}, "not supported"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space"),
    ],
)
def test_bad_files_are_refused_by_their_names(
    tmp_path: Path, tiny: TinyModel, name: str, value: Any, words: str
) -> None:
    path = put(write_vocab(tmp_path / "hf", tiny), name, value)
    file = "vocab.json" if words == "another id" else name
    refused(path, file, words)


def test_a_vocabulary_may_have_no_merges(tmp_path: Path, tiny: TinyModel) -> None:
    vocab = formats.read(write_vocab(tmp_path / "hf", tiny, merges="  \n\n")).vocab
    assert Tokenizer(vocab).encode("def") == [5 + ord(char) for char in "def"]


def test_files_that_contradict_each_other_are_refused(tmp_path: Path, tiny: TinyModel) -> None:
    decoder = {"310": {"content": "<|user|>"}}
    more = {
        "added_tokens.json": {"<|system|>": 310},
        "tokenizer_config.json": {"added_tokens_decoder": decoder},
    }
    refused(write_vocab(tmp_path / "hf", tiny, more=more), "another token 310")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_one_file_of_the_two_is_not_enough(tmp_path: Path, tiny: TinyModel, name: str) -> None:
    path = write_vocab(tmp_path / "hf", tiny)
    (path / name).unlink()
    refused(path, "tokenizer.json: no such file", "vocab.json and merges.txt")


# ------------------------------------------------------------------------------------------------
# Tokens without a row


@pytest.mark.parametrize("in_vocab", [True, False])
def test_an_added_token_without_a_row_is_dropped_and_said(
    tmp_path: Path, tiny: TinyModel, in_vocab: bool
) -> None:
    table = with_added(tiny, (320, "[PAD]"), in_vocab=in_vocab)
    found = formats.read(write_hf(tmp_path / "hf", tiny, tokenizer=table))
    assert found == formats.read(write_hf(tmp_path / "whole", tiny))
    assert found.vocab.unembedded == {b"[PAD]"}
    (notice,) = found.notices
    assert "320 rows" in notice
    assert "'[PAD]' (id 320)" in notice


def test_the_same_holds_for_the_older_files(tmp_path: Path, tiny: TinyModel) -> None:
    more = {"added_tokens.json": {"[PAD]": 320, "<|user|>": 310}}
    vocab = formats.read(write_vocab(tmp_path / "hf", tiny, more=more)).vocab
    assert vocab.unembedded == {b"[PAD]"}
    assert vocab.find("<|user|>") == 310


def test_an_ordinary_token_without_a_row_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    table: Any = hf_tokenizer(tiny)
    table["model"]["vocab"]["word"] = 320
    refused(write_hf(tmp_path / "hf", tiny, tokenizer=table), "an id out of range")


@pytest.mark.parametrize("n_vocab", [319, 325])
def test_rows_that_config_json_does_not_state_are_an_error_with_both_numbers(
    tmp_path: Path, tiny: TinyModel, n_vocab: int
) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={"vocab_size": n_vocab})
    refused(path, f"vocab_size: found {n_vocab}, expected 320, the rows of the embedding")


def test_more_tokens_without_weights_than_a_file_can_hold_are_refused(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starcoder.formats.hf.vocab.MAX_TOKENS", 320)
    added = hf_tokenizer(tiny)["added_tokens"]
    added += [{"id": 320 + i, "content": f"<{i}>", "special": True} for i in range(321)]
    path = write_hf(tmp_path / "hf", tiny, tokenizer={"added_tokens": added})
    with pytest.raises(FormatError, match="321 added tokens without a row in the embedding"):
        formats.read(path)
