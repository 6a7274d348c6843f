"""From weights to the model in the wheel: a Hugging Face directory in f16, then GGUF files.

The layers' matrices are written as q4_0 rounds them, for so they were trained; q4_0 then loses
nothing. The GGUF files are made by starcoder's own commands.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from training import grid
from training.shape import Shape
from training.tokenizer import SPECIAL_TOKENS

NAME = "starcoder-pocket"
OPTIONS = {"q4_0": ("--tensor-type", "position_embd=f16")}
FRONT_MATTER = """---
license: mit
description: A small Python model, trained from scratch; see starcoder-py's docs/model_card.md.
---
"""
WHEEL_BYTES = 25_000_000  # the most that the shipped file may have


def export(checkpoint: Path, vocabulary: Path, models: Sequence[Path]) -> None:
    """Write GGUF files, each of the type that its name ends in, and the directory beside them.

    Raises:
        ValueError: the first file is too large for the wheel.
    """
    directory = models[0].parent / NAME
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    write_directory(state["model"], Shape(**state["shape"]), vocabulary, directory)
    whole = directory.with_suffix(".f16.gguf")
    _starcoder("convert", directory, whole)
    for path in models:
        type_ = path.stem.removeprefix(f"{NAME}-")
        _starcoder("quantize", whole, path, type_, *OPTIONS.get(type_, ()))
    if (size := models[0].stat().st_size) > WHEEL_BYTES:
        raise ValueError(
            f"{models[0]} has {size} bytes, the wheel has room for {WHEEL_BYTES}: "
            "take a smaller shape"
        )


def write_directory(
    state: Mapping[str, Tensor], shape: Shape, vocabulary: Path, directory: Path
) -> None:
    """Write the weights, the sizes and the tokenizer as `transformers` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    rounded = {
        name: (grid.q4_0(tensor) if grid.is_on_grid(name, tensor) else tensor).half().cpu()
        for name, tensor in state.items()
    }
    save_file(rounded, directory / "model.safetensors", {"format": "pt"})
    end = SPECIAL_TOKENS[0]
    tokens = {"bos_token": end, "eos_token": end, "unk_token": end}
    _write_json(directory / "config.json", _config(shape))
    _write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", **tokens},
    )
    (directory / "tokenizer.json").write_bytes(vocabulary.read_bytes())
    (directory / "README.md").write_text(FRONT_MATTER)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _starcoder(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "starcoder", *map(str, arguments)], check=True)


def _config(shape: Shape) -> dict[str, object]:
    return {
        "_name_or_path": NAME,
        "activation_function": "gelu_pytorch_tanh",
        "architectures": ["GPTBigCodeForCausalLM"],
        "attention_softmax_in_fp32": True,
        "bos_token_id": 0,
        "dtype": "float16",
        "eos_token_id": 0,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt_bigcode",
        "multi_query": True,
        "scale_attention_softmax_in_fp32": True,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "use_cache": True,
        **asdict(shape),
    }
