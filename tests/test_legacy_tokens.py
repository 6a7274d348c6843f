"""Legacy ggml files: what of a vocabulary they keep under the names they know, and what they lose.

What is lost is said before anything is written, and lost only on demand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.errors import WriteError
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.command import Run
from tests.helpers.gguf import Value, gguf_keys, write_gguf
from tests.helpers.hf import hf_tokenizer, write_hf
from tests.helpers.tiny import TinyModel, make_tiny


def chat_model(path: Path, *added: str, config: Mapping[str, Any] | None = None) -> Path:
    """A folder whose tokens from 309 on are these special ones; the last ends a text."""
    model = make_tiny()
    table: Any = hf_tokenizer(model)
    table["added_tokens"] += [
        {"id": 309 + i, "content": name, "special": True} for i, name in enumerate(added)
    ]
    last = {"eos_token_id": 308 + len(added)} if added else {}
    return write_hf(path, model, tokenizer=table, config=last | dict(config or {}))


@pytest.mark.parametrize(
    "added",
    [(), ("<|im_start|>", "<|im_end|>"), ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")],
)
def test_tokens_of_known_names_come_back(tmp_path: Path, run: Run, added: tuple[str, ...]) -> None:
    source, out = chat_model(tmp_path / "hf", *added), tmp_path / "x.bin"
    result = run("convert", str(source), str(out), "--type", "f32")
    assert result.code == 0
    assert "warning" not in result.err
    before, after = formats.read(source).vocab, formats.read(out).vocab
    assert after.special_ids == before.special_ids
    assert after.end_ids == before.end_ids
    text = "def f" + "".join(added)
    assert Tokenizer(after).encode(text) == Tokenizer(before).encode(text)


def test_what_cannot_be_kept_is_listed_and_nothing_is_written(tmp_path: Path, run: Run) -> None:
    source, out = chat_model(tmp_path / "hf", "<|start|>", "<|stop|>"), tmp_path / "x.bin"
    result = run("convert", str(source), str(out))
    assert result.code == 2
    error = result.err.splitlines()[-1]
    assert "special tokens that a .bin cannot mark: '<|start|>', '<|stop|>'" in error
    assert "ends of text that a .bin cannot mark: '<|stop|>'" in error
    assert "--force" in error
    assert not out.exists()


def test_by_force_it_is_written_and_each_loss_is_a_warning(tmp_path: Path, run: Run) -> None:
    source, out = chat_model(tmp_path / "hf", "<|start|>", "<|stop|>"), tmp_path / "x.bin"
    result = run("convert", str(source), str(out), "--force")
    assert result.code == 0
    assert result.err.count("convert: warning: ") == 2
    assert "ends of text that a .bin cannot mark: '<|stop|>'" in result.err
    assert formats.read(out).vocab.end_ids == {0}


def test_quantize_asks_too(tmp_path: Path, run: Run) -> None:
    source = write_gguf(
        tmp_path / "x.gguf", make_tiny(), keys={"tokenizer.ggml.eos_token_id": Value("u32", 2)}
    )
    out = tmp_path / "x.bin"
    refused = run("quantize", str(source), str(out), "q8_0")
    assert refused.code == 2
    assert "ends of text that a .bin cannot mark: '<fim_middle>'" in refused.err
    assert not out.exists()
    forced = run("quantize", str(source), str(out), "q8_0", "--force")
    assert forced.code == 0
    assert out.exists()


def test_force_changes_nothing_where_nothing_is_lost(tmp_path: Path, run: Run) -> None:
    source = write_gguf(tmp_path / "x.gguf", make_tiny())
    for name, options in {"plain.bin": (), "forced.bin": ("--force",)}.items():
        result = run("convert", str(source), str(tmp_path / name), *options)
        assert result.code == 0
        assert "warning" not in result.err
    assert (tmp_path / "plain.bin").read_bytes() == (tmp_path / "forced.bin").read_bytes()


def without_digits(model: TinyModel) -> dict[str, Value | None]:
    return {"tokenizer.ggml.pre": Value("str", "gpt-2")}


def without_end(model: TinyModel) -> dict[str, Value | None]:
    texts = gguf_keys(model)["tokenizer.ggml.tokens"].value
    return {
        "tokenizer.ggml.tokens": Value("str", ["<|other|>", *texts[1:]]),
        "tokenizer.ggml.eos_token_id": None,
        "tokenizer.ggml.bos_token_id": None,
    }


def with_plain_names(model: TinyModel) -> dict[str, Value | None]:
    kinds = gguf_keys(model)["tokenizer.ggml.token_type"].value
    return {"tokenizer.ggml.token_type": Value("i32", [kinds[0], 1, *kinds[2:]])}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (without_digits, "digits that belong together, which a .bin reads apart"),
        (without_end, "tokens that a .bin takes for an end of text: '<|other|>'"),
        (with_plain_names, "plain text that a .bin takes for special tokens: '<fim_prefix>'"),
    ],
)
def test_whatever_would_read_otherwise_is_told(
    tmp_path: Path, tiny: TinyModel, keys: Any, words: str
) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "x.gguf", tiny, keys=keys(tiny)))
    with pytest.raises(WriteError) as caught:
        formats.write(tmp_path / "x.bin", checkpoint, legacy=True)
    assert words in str(caught.value)
    formats.write(tmp_path / "x.bin", checkpoint, legacy=True, force=True)
    assert formats.read(tmp_path / "x.bin").vocab != checkpoint.vocab


def test_tokens_without_a_row_are_told(tmp_path: Path, tiny: TinyModel) -> None:
    table: Any = hf_tokenizer(tiny)
    table["added_tokens"].append({"id": 320, "content": "[PAD]"})
    checkpoint = formats.read(write_hf(tmp_path / "hf", tiny, tokenizer=table))
    with pytest.raises(
        WriteError, match=r"without weights, which a .bin takes for text: '\[PAD\]'"
    ):
        formats.write(tmp_path / "x.bin", checkpoint, legacy=True)


def test_other_merges_are_a_warning(tmp_path: Path, tiny: TinyModel, run: Run) -> None:
    merges = gguf_keys(tiny)["tokenizer.ggml.merges"].value[1:]
    source = write_gguf(
        tmp_path / "x.gguf", tiny, keys={"tokenizer.ggml.merges": Value("str", merges)}
    )
    result = run("convert", str(source), str(tmp_path / "x.bin"))
    assert result.code == 0
    assert "x.bin: merges that a .bin cannot hold" in result.err


def test_a_vocabulary_that_cannot_be_read_back_is_never_written(
    tmp_path: Path, tiny: TinyModel
) -> None:
    checkpoint = formats.read(write_gguf(tmp_path / "x.gguf", tiny))
    long = tuple(raw or b"x" * 5000 for raw in checkpoint.vocab.tokens)
    vocab = type(checkpoint.vocab)(
        long, np.zeros((0, 2), np.int32), checkpoint.vocab.special_ids, eos_id=0
    )
    checkpoint = type(checkpoint)(checkpoint.config, vocab, checkpoint.tensors)
    with pytest.raises(WriteError, match="a token of 5000 bytes"):
        formats.write(tmp_path / "x.bin", checkpoint, legacy=True, force=True)
    assert not (tmp_path / "x.bin").exists()


def test_an_end_that_only_a_chat_template_names_is_asked_for(tmp_path: Path, run: Run) -> None:
    source = chat_model(tmp_path / "hf", "<|stop|>", config={"eos_token_id": 0})
    template = "{{ message['content'] + '<|stop|>' }}"
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    result = run("convert", str(source), str(tmp_path / "x.bin"))
    assert result.code == 2
    assert "ends of text that a .bin cannot mark: '<|stop|>'" in result.err
