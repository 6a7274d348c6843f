"""Hugging Face directories of the architectures that are declared. Reading only.

config.json gives the shapes, tokenizer.json (or vocab.json and merges.txt) the vocabulary; the
weights are in safetensors files or, where there are none, in PyTorch's. Each has a module of its
own; here they meet, and what contradicts each other between them is found.

Nothing in a directory is executed: no code, no template, no regular expression, and of a pickle
only what makes tensors. Tensors stay in the mapped files.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from starcoder.core.tensor import Tensor
from starcoder.formats.hf.card import card_keys
from starcoder.formats.hf.config import Settings, read_config
from starcoder.formats.hf.ends import with_ends
from starcoder.formats.hf.files import placeholder_at
from starcoder.formats.hf.folder import folder_of, refuse_adapter, refuse_config
from starcoder.formats.hf.names import canonical
from starcoder.formats.hf.tokenizer_json import read_tokenizer
from starcoder.formats.hf.vocab import join
from starcoder.formats.hf.vocab_json import has_files, read_vocab_files
from starcoder.formats.hf.weights import read_weights
from starcoder.formats.io.reject import reject, shown
from starcoder.model.architecture import Architecture, Role
from starcoder.model.checkpoint import Checkpoint, Format, settle
from starcoder.model.config import ModelConfig
from starcoder.model.models import ARCHITECTURES
from starcoder.model.vocab import Vocab

__all__ = ["check_config", "folder_of", "read"]

_MAX_NOTICE = 500  # characters


def read(path: Path) -> Checkpoint:
    """The model in a directory with config.json, a tokenizer and weights.

    Raises:
        FormatError: a file that is missing, or anything in one that is not as it should be.
    """
    notices: list[str] = []
    refuse_adapter(path, notices)
    if not os.path.lexists(path / "config.json"):
        refuse_config(path)
    settings = Settings(path / "config.json")
    config = read_config(settings, notices)
    vocab = with_ends(settings, _vocab(path, config.n_vocab, notices), notices)
    architecture = ARCHITECTURES[config.architecture]
    tensors = canonical(path, architecture, config, read_weights(path, notices), notices)
    _check_rows(settings, config, tensors[architecture.embedding])
    tensors = _untie(path, settings, architecture, tensors)
    tensors = settle(tensors, architecture, str(path))
    if config.n_kv_heads != 1:
        tensors |= _group_heads(path, architecture, config, tensors)
    told = tuple(shown(notice, _MAX_NOTICE) for notice in notices)
    kind, carried = Format.HUGGING_FACE, card_keys(path)
    return Checkpoint(
        config, vocab, tensors, kind, "Hugging Face", str(path), told, carried=carried
    )


def check_config(folder: Path) -> None:
    """Ends with a folder whose config.json alone, before its weights are there, refuses it.

    Raises:
        FormatError: as `read` would.
    """
    read_config(Settings(folder / "config.json"), [])


def _vocab(path: Path, n_vocab: int, notices: list[str]) -> Vocab:
    """From tokenizer.json; from vocab.json and merges.txt where there is none."""
    whole = path / "tokenizer.json"
    lacking = not os.path.lexists(whole) or placeholder_at(whole) is not None
    if lacking and has_files(path):
        return join(read_vocab_files(path, notices), n_vocab, notices)
    if lacking and not os.path.lexists(whole):
        expected = "tokenizer.json, or vocab.json and merges.txt"
        reject(whole, "", "no such file", expected, "download it from where the weights are from")
    return join(read_tokenizer(whole), n_vocab, notices)


def _check_rows(settings: Settings, config: ModelConfig, embedding: Tensor) -> None:
    """As many rows of the embedding as config.json has ids: which is right, nothing can tell."""
    rows = embedding.shape[0]
    if rows != config.n_vocab:
        found, expected = str(config.n_vocab), f"{rows}, the rows of the embedding"
        advice = "set it to that number if the weights and the tokenizer are of one model"
        reject(settings.path, "vocab_size", found, expected, advice)


def _untie(
    path: Path, settings: Settings, architecture: Architecture, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Without the output matrix, if the configuration says that it is the embedding."""
    (head,) = (spec for spec in architecture.tensors if spec.role is Role.OUTPUT)
    if settings.flag("tie_word_embeddings", True):
        return {name: tensor for name, tensor in tensors.items() if name != head.name}
    if head.name not in tensors:
        advice = "set tie_word_embeddings if the output matrix is the embedding"
        reject(path, f"tensor {head.hf}", "no such tensor", "an output matrix", advice)
    return tensors


def _group_heads(
    path: Path, architecture: Architecture, config: ModelConfig, tensors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Projections with their rows in the order Q, K, V, where rows of a head are kept together."""
    grouped = {}
    for name, spec in architecture.specs(config.n_layers).items():
        if not spec.hf_by_head:
            continue
        tensor = tensors[name]
        if tensor.shape[0] != 3 * config.dim:
            where = f"shape {tensor.shape}"
            reject(path, f"tensor {name}", where, f"{3 * config.dim} rows for multi_query false")
        heads = tensor.data.reshape(config.n_heads, 3, -1)
        data = np.ascontiguousarray(heads.transpose(1, 0, 2)).reshape(-1)
        grouped[name] = Tensor(tensor.type, tensor.shape, data)
    return grouped
