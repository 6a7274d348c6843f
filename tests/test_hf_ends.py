"""Where text ends: every file of a Hugging Face folder that names a token for it is heard."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import LLM, formats
from starcoder.model.vocab import Vocab
from tests.helpers.hf import put, with_added, write_hf, write_vocab
from tests.helpers.tiny import TinyModel, make_tiny

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
