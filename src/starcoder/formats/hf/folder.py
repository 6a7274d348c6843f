"""What a Hugging Face directory is before anything of it is read, and what it is not.

People have folders of adapters, of other programs' weights, of GGUF files, or give one file of a
folder. Each is refused here by its name, with what to do, or understood. What the files of a good
folder mean, its readers know.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from starcoder.formats.hf.files import load_table
from starcoder.formats.io.reject import reject

__all__ = ["folder_of", "names_in", "refuse_adapter", "refuse_config", "refuse_weights"]

_PART = re.compile(
    r"(pytorch_model|model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?"
    r"|(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|vocab\.json|merges\.txt|chat_template\.jinja"
)
_ADAPTER = re.compile(r"adapter_(config\.json|model\.(safetensors|bin))")
_MERGE = "load both with peft, call merge_and_unload() and save_pretrained()"
_NEEDED = "a folder with config.json, the tokenizer and the weights"

# Weights that other programs read, by the ends of their names, and where to go from there.
_OTHER_WEIGHTS = {
    "adapter_model.safetensors": "merge it with its base model (peft's merge_and_unload)",
    "adapter_model.bin": "merge it with its base model (peft's merge_and_unload)",
    ".h5": "load it with from_tf=True in transformers 4 and save it with save_pretrained",
    ".msgpack": "load it with from_flax=True in transformers 4 and save it with save_pretrained",
    ".onnx": "use the PyTorch model that it was exported from",
    ".ckpt": "save the model with save_pretrained",
    ".pt": "save the model with save_pretrained",
    ".pth": "save the model with save_pretrained",
    ".safetensors": "if it is the whole model, name it model.safetensors",
}


def folder_of(path: Path) -> Path | None:
    """The folder that is meant where one of its files is given; None for any other file.

    Raises:
        FormatError: such a file without the rest of its folder.
    """
    if _ADAPTER.fullmatch(path.name):
        return path.parent if os.path.exists(path.parent / "adapter_config.json") else None
    if not _PART.fullmatch(path.name):
        return None
    if not os.path.exists(path.parent / "config.json"):
        if path.name.endswith(".bin"):
            return None  # a name that other formats have too
        advice = "put config.json and tokenizer.json beside it"
        reject(path, "", "one file of a Hugging Face model, alone", _NEEDED, advice)
    return path.parent


# ------------------------------------------------------------------------------------------------
# Folders of something else


def refuse_adapter(folder: Path, notices: list[str]) -> None:
    """Ends reading of a folder of an adapter; one beside a whole model is worth a notice.

    Raises:
        FormatError: adapter_config.json and no weights of a whole model.
    """
    names = names_in(folder)
    if "adapter_config.json" not in names:
        return
    if any(n.startswith(_WHOLE) and not n.endswith(".index.json") for n in names):
        notices.append(f"the adapter beside the model is not applied; to have it, {_MERGE}")
        return
    table = load_table(folder / "adapter_config.json")
    base, kind = (table.get(key) for key in ("base_model_name_or_path", "peft_type"))
    kind = "LoRA" if kind == "LORA" else kind if isinstance(kind, str) else "PEFT"
    of = f" for the base model {base!r}" if isinstance(base, str) else ""
    reject(folder, "", f"a {kind} adapter{of}", "a whole model", f"{_MERGE}, then give that folder")


_QUANTIZED = ("quantize_config.json", "quant_config.json")  # of AutoGPTQ and AutoAWQ
_WHOLE = ("model.safetensors", "model-0", "pytorch_model")  # how weights of a model begin


def refuse_weights(folder: Path) -> NoReturn:
    """Ends reading of a folder without weights that can be read, naming those that it has.

    Raises:
        FormatError: always.
    """
    names = names_in(folder)
    _refuse_gguf(folder, names)
    for name in _QUANTIZED:
        if name in names:
            found = f"weights quantized by another program ({name})"
            advice = "use the model that it was made from"
            reject(folder, "", found, "weights in F32, F16 or BF16", advice)
    for name in names:
        for end, advice in _OTHER_WEIGHTS.items():
            if name.endswith(end):
                expected = "model.safetensors or pytorch_model.bin"
                reject(folder, "", f"weights in {name}", expected, advice)
    expected = "weights there or in shards, or in pytorch_model.bin"
    reject(folder / "model.safetensors", "", "no such file", expected, "download the weights too")


def refuse_config(folder: Path) -> NoReturn:
    """Ends reading of a folder without config.json.

    Raises:
        FormatError: always.
    """
    names = names_in(folder)
    _refuse_gguf(folder, names)
    if not names:
        reject(folder, "", "an empty folder", _NEEDED, "download the model, or give another folder")
    for last in ("config.json", "adapter_config.json"):
        deeper = [name for name in names if os.path.exists(folder / name / last)]
        if deeper:
            advice = f"did you mean {folder / max(deeper, key=_by_number)}?"
            reject(folder, "", f"{len(deeper)} folders with {last}, no model", _NEEDED, advice)
    advice = "download config.json too"
    reject(folder / "config.json", "", "no such file", _NEEDED, advice)


def _by_number(name: str) -> tuple[int, str]:
    """The order of checkpoint-500 and checkpoint-1000."""
    digits = re.search(r"(\d{1,18})$", name, re.ASCII)
    return int(digits[1]) if digits else -1, name


def _refuse_gguf(folder: Path, names: Sequence[str]) -> None:
    found = [name for name in names if name.lower().endswith(".gguf")]
    if found:
        some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        advice = f"give one of them: {folder / found[0]}"
        reject(folder, "", f"a folder of GGUF files ({some})", "a file or " + _NEEDED, advice)


def names_in(folder: Path) -> list[str]:
    """The names in a folder in order; none where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
