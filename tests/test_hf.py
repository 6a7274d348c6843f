"""The habits of the family's Hugging Face directories: SantaCoder's, StarCoder's, fine-tunes'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from starcoder import formats
from starcoder.errors import FormatError
from starcoder.text.tokenizer import Tokenizer
from tests.helpers.hf import hf_tokenizer, hf_weights, write_hf
from tests.helpers.tiny import TinyModel, make_tiny, printable

DASHES = ("<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>")


def santacoder(path: Path, model: TinyModel, *, in_vocab: bool) -> Path:
    """Special tokens after all others, spelled with dashes; the embedding padded beyond them."""
    texts = [printable(raw) for raw in model.tokens[5:]]
    vocab = {text: i for i, text in enumerate([*texts, *(DASHES if in_vocab else ())])}
    added = [
        {"id": len(texts) + i, "content": name, "special": True} for i, name in enumerate(DASHES)
    ]
    tokenizer: dict[str, Any] = hf_tokenizer(model)
    tokenizer |= {"added_tokens": added, "model": tokenizer["model"] | {"vocab": vocab}}
    config = {"eos_token_id": len(texts), "bos_token_id": len(texts)}
    return write_hf(path, model, tokenizer=tokenizer, config=config)


@pytest.mark.parametrize("in_vocab", [True, False])
def test_special_tokens_after_the_vocabulary_and_padding_after_them(
    tmp_path: Path, tiny: TinyModel, in_vocab: bool
) -> None:
    vocab = formats.read(santacoder(tmp_path / "hf", tiny, in_vocab=in_vocab)).vocab
    n = len(tiny.tokens)
    assert len(vocab.tokens) == tiny.n_vocab > n
    assert set(vocab.tokens[n:]) == {b""}
    assert vocab.special_ids == set(range(n - 5, n))
    assert vocab.eos_id == vocab.bos_id == n - 5
    assert vocab.end_ids == {n - 5}
    tokenizer = Tokenizer(vocab)
    ids = tokenizer.encode("<fim-prefix>def<fim-suffix><fim-middle>")
    assert [i for i in ids if i >= n - 5] == [n - 4, n - 2, n - 3]
    assert tokenizer.decode(ids) == "<fim-prefix>def<fim-suffix><fim-middle>"


def test_a_chat_model_adds_tokens_of_its_own(tmp_path: Path, tiny: TinyModel) -> None:
    """As StarChat does: the embedding grows by the tokens that were added."""
    tokenizer: dict[str, Any] = hf_tokenizer(tiny)
    chat = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    n = len(tiny.tokens)
    tokenizer["added_tokens"] += [
        {"id": n + i, "content": name, "special": name != "<|end|>"} for i, name in enumerate(chat)
    ]
    vocab = formats.read(write_hf(tmp_path / "hf", tiny, tokenizer=tokenizer)).vocab
    assert [vocab.find(name) for name in chat] == [n, n + 1, n + 2, n + 3]
    assert vocab.end_ids == {0, n + 3}


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("gelu", "gelu_erf"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        (None, "gelu_tanh"),
    ],
)
def test_the_activation_is_the_one_that_the_configuration_names(
    tmp_path: Path, tiny: TinyModel, name: str | None, activation: str
) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={"activation_function": name} if name else {})
    assert formats.read(path).config.activation == activation


def test_an_activation_that_we_lack_is_refused(tmp_path: Path, tiny: TinyModel) -> None:
    path = write_hf(tmp_path / "hf", tiny, config={"activation_function": "relu"})
    with pytest.raises(FormatError, match="activation_function: found 'relu'"):
        formats.read(path)


def test_a_separate_output_is_kept_and_a_tied_one_is_not(tmp_path: Path) -> None:
    model = make_tiny(tied=False)
    separate = formats.read(write_hf(tmp_path / "separate", model))
    assert np.array_equal(separate.tensors["output.weight"].array(), model.weights["output.weight"])
    weights = hf_weights(make_tiny())
    weights["lm_head.weight"] = weights["transformer.wte.weight"].copy()
    for tied in (True, False):
        config = {"tie_word_embeddings": tied}
        path = write_hf(tmp_path / f"tied-{tied}", make_tiny(), config=config, weights=weights)
        assert "output.weight" not in formats.read(path).tensors
