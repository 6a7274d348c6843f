"""Vocabularies of Hugging Face folders: the older files, tokens without a row, and ends of text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, formats
from starcoder.errors import FormatError
from starcoder.model.vocab import Vocab
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.hf import hf_tokenizer, put, write_hf
from tests.helpers.refusals import refused
from tests.helpers.tiny import TinyModel, make_tiny, printable

PROMPT = "def f(x1, größer):\n    return 2048 + 1  # <fim_prefix>"


# ------------------------------------------------------------------------------------------------
# vocab.json and merges.txt


def merge_lines(model: TinyModel) -> list[str]:
    return [f"{printable(left)} {printable(right)}" for left, right in model.merges]


def write_vocab(
    path: Path,
    model: TinyModel,
    *,
    merges: str | bytes | None = None,
    more: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    vocab: Mapping[str, Any] | None = None,
) -> Path:
    """The model with GPT-2's files in place of tokenizer.json; `more` are further files."""
    write_hf(path, model, config=config)
    (path / "tokenizer.json").unlink()
    table = hf_tokenizer(model)["model"]["vocab"]
    put(path, "vocab.json", table if vocab is None else vocab)
    lines = "\n".join(["#version: 0.2", *merge_lines(model), ""])
    put(path, "merges.txt", lines if merges is None else merges)
    for name, value in (more or {}).items():
        put(path, name, value)
    return path


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


def with_added(model: TinyModel, *added: tuple[int, str], in_vocab: bool = False) -> dict[str, Any]:
    table: Any = hf_tokenizer(model)
    table["added_tokens"] += [{"id": i, "content": text, "special": True} for i, text in added]
    if in_vocab:
        table["model"]["vocab"] |= {text: i for i, text in added}
    return dict(table)


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


# ------------------------------------------------------------------------------------------------
# Ends of text

IM_START, IM_END = 309, 310


def chat(path: Path, config: Mapping[str, Any] | None = None, **files: Any) -> Vocab:
    """A model with two tokens of a chat in its vocabulary, read with these files beside it."""
    model = make_tiny()
    table = with_added(model, (IM_START, "<|im_start|>"), (IM_END, "<|stop|>"))
    write_hf(path, model, tokenizer=table, config={"eos_token_id": None} | dict(config or {}))
    for name, value in files.items():
        put(path, f"{name}.json", value)
    return formats.read(path).vocab


@pytest.mark.parametrize(
    ("config", "files", "eos", "ends"),
    [
        ({"eos_token_id": IM_END}, {}, IM_END, {0, IM_END}),
        ({"eos_token_id": [0, IM_END]}, {}, 0, {0, IM_END}),
        ({"eos_token_id": [IM_END, 0]}, {}, IM_END, {0, IM_END}),
        ({"eos_token_id": 0}, {"generation_config": {"eos_token_id": [0, 310]}}, 0, {0, 310}),
        ({}, {"generation_config": {"eos_token_id": IM_END}}, IM_END, {0, IM_END}),
        ({}, {"tokenizer_config": {"eos_token": "<|stop|>"}}, IM_END, {0, IM_END}),
        ({}, {"tokenizer_config": {"eos_token": {"content": "<|stop|>"}}}, IM_END, {0, IM_END}),
        ({}, {"special_tokens_map": {"eos_token": "<|stop|>"}}, IM_END, {0, IM_END}),
        ({"eos_token_id": 50256}, {}, 0, {0}),
        ({"eos_token_id": 0}, {"generation_config": {"eos_token_id": 50256}}, 0, {0}),
        ({}, {}, None, {0}),
    ],
)
def test_generation_stops_at_every_end_that_a_file_names(
    tmp_path: Path, config: dict[str, Any], files: dict[str, Any], eos: int | None, ends: Set[int]
) -> None:
    vocab = chat(tmp_path / "hf", config, **files)
    assert (vocab.eos_id, vocab.end_ids) == (eos, ends)


def test_text_ends_at_a_token_that_only_generation_config_names(tmp_path: Path) -> None:
    loud = make_tiny()
    loud.weights["output.weight"] = np.zeros((320, 32), np.float32)
    loud.weights["output.weight"][IM_END] = loud.weights["output_norm.bias"]
    loud.weights["output_norm.weight"] = np.zeros(32, np.float32)
    table = with_added(loud, (IM_START, "<|im_start|>"), (IM_END, "<|stop|>"))
    path = write_hf(tmp_path / "loud", loud, tokenizer=table)
    put(path, "generation_config.json", {"eos_token_id": [0, IM_END]})
    completion = LLM(str(path)).generate("def", max_tokens=5, temperature=0)
    assert completion.finish_reason == "stop"
    assert completion.text == ""


@pytest.mark.parametrize("kind", ["eos", "bos"])
@pytest.mark.parametrize("value", [320, -1, 10**30])
def test_ids_that_the_vocabulary_lacks_are_a_notice(
    tmp_path: Path, tiny: TinyModel, kind: str, value: int
) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={f"{kind}_token_id": value})
    found = formats.read(put(path, "generation_config.json", {f"{kind}_token_id": 3}))
    assert getattr(found.vocab, f"{kind}_id") == 3
    (notice,) = found.notices
    assert f"config.json: {kind}_token_id is not an id of the vocabulary (0 to 319)" in notice
    assert str(value)[:30] in notice


@pytest.mark.parametrize("text", ["", "[]", '{"a":1,"a":2}', "version https://git-lfs", "<html>"])
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_a_bad_file_that_a_model_can_do_without_is_a_notice(
    tmp_path: Path, tiny: TinyModel, name: str, text: str
) -> None:
    found = formats.read(put(write_hf(tmp_path / "hf", tiny), name, text))
    assert found == formats.read(write_hf(tmp_path / "whole", tiny))
    assert [notice.split(":")[0] for notice in found.notices] == [f"{name} is not used"]


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_so_it_is_beside_the_older_files(tmp_path: Path, tiny: TinyModel, name: str) -> None:
    path = write_vocab(tmp_path / "hf", tiny)
    whole = formats.read(path)
    found = formats.read(put(path, name, "garbage"))
    assert found == whole
    (notice,) = set(found.notices) - set(whole.notices)
    assert notice.startswith(f"{name} is not used: ")
    assert found.notices.count(notice) == 1


@pytest.mark.parametrize("value", ["</s>", 7, [], {"content": None}, {"content": "a" * 5000}])
def test_an_end_that_is_no_token_ends_nothing(tmp_path: Path, tiny: TinyModel, value: Any) -> None:
    path = put(write_hf(tmp_path / "hf", tiny), "tokenizer_config.json", {"eos_token": value})
    assert formats.read(path).vocab.end_ids == {0}


CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|stop|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
BRANCHES = """{% for message in messages -%}
{%- if message['role'] == 'user' %}
{{ message['content'] }}<|im_start|>
{%- elif message["role"] == "assistant" -%}
{{ message["content"] | trim }}{{ '<|stop|>' }}
{%- endif %}{% endfor %}"""
ELSE = """{% if message.role == 'user' %}{{ message.content + '<|im_start|>' }}
{% else %}{{ message.content + "\\n<|stop|>" }}{% endif %}"""
OTHERS = """{% if message.role == 'assistant' %}{{ message.content + eos_token }}
{% else %}{{ message.content + "<|im_start|>" }}{% endif %}"""
NEXT_TURN = "{{ message['content'] }}<|assistant|>"


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        (CHATML, {0, IM_END}),
        (BRANCHES, {0, IM_END}),
        (ELSE, {0, IM_END}),
        ([{"name": "x", "template": "{{ 1 }}"}, {"name": "y", "template": CHATML}], {0, IM_END}),
        (OTHERS, {0}),
        (NEXT_TURN, {0}),
        ("{{ '<|stop|>' + message['role'] }}{{ message['content'] + '\\n' }}", {0}),
        ("{{ message.reasoning_content + '<|stop|>' }}", {0}),
        ("{{ message.content.split('<|stop|>') }}", {0}),
        ("{{ message.content }}<|start|>", {0}),
        ("no tokens, no content", {0}),
        (7, {0}),
        ([7, {"template": 7}], {0}),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_the_token_behind_what_the_assistant_says_ends_the_text(
    tmp_path: Path, template: Any, ends: set[int], in_file: bool
) -> None:
    chat(tmp_path / "hf", {"eos_token_id": 0})
    if in_file and isinstance(template, str):
        put(tmp_path / "hf", "chat_template.jinja", template)
    else:
        put(tmp_path / "hf", "tokenizer_config.json", {"chat_template": template})
    assert formats.read(tmp_path / "hf").vocab.end_ids == ends


def test_an_end_of_a_turn_with_a_usual_name_counts_wherever_a_template_has_it(
    tmp_path: Path, tiny: TinyModel
) -> None:
    table = with_added(tiny, (310, "<|eot_id|>"), (311, "<|im_end|>"))
    path = write_hf(tmp_path / "hf", tiny, tokenizer=table)
    put(path, "chat_template.jinja", "{% set end = '<|eot_id|>' %}{{ render(message) + end }}")
    vocab = formats.read(path).vocab
    assert vocab.eos_id == 0
    assert 310 in vocab.end_ids


def test_ends_survive_gguf(tmp_path: Path) -> None:
    vocab = chat(tmp_path / "hf", {"eos_token_id": IM_END})
    checkpoint = formats.read(tmp_path / "hf")
    formats.write(tmp_path / "x.gguf", checkpoint)
    assert formats.read(tmp_path / "x.gguf").vocab.eos_id == vocab.eos_id == IM_END


def test_more_tokens_without_weights_than_a_file_can_hold_are_refused(
    tmp_path: Path, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starcoder.formats.hf.vocab.MAX_TOKENS", 320)
    added = hf_tokenizer(tiny)["added_tokens"]
    added += [{"id": 320 + i, "content": f"<{i}>", "special": True} for i in range(321)]
    path = write_hf(tmp_path / "hf", tiny, tokenizer={"added_tokens": added})
    with pytest.raises(FormatError, match="321 added tokens without a row in the embedding"):
        formats.read(path)
