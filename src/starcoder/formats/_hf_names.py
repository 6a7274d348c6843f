"""Tensors of a Hugging Face directory under our names, whatever their common prefix.

`transformer.h.0.ln_1.weight` is also found as `h.0.ln_1.weight`, or behind `module.` and
`base_model.model.`: programs that train wrap a model, and save the wrapping with it. What they add
and inference does not need is passed over; what changes the weights is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from starcoder.config import ModelConfig
from starcoder.formats._bytes import reject
from starcoder.formats._safetensors import Stored
from starcoder.tensor import Tensor, TensorType

__all__ = ["canonical", "listed"]

_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}

_EMBEDDING, _HEAD = "wte.weight", "lm_head.weight"
_GLOBAL = {
    _EMBEDDING: "token_embd.weight",
    "wpe.weight": "position_embd.weight",
    "ln_f.weight": "output_norm.weight",
    "ln_f.bias": "output_norm.bias",
}
_LAYER = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}

# Constants that old versions saved with the weights, and the value head of reinforcement learning.
_NEEDLESS = re.compile(r"(.*\.)?attn\.(masked_)?bias|(.*\.)?v_head\..*", re.DOTALL)

_ONE_ALONE = "there are two models in it, as of training with a reference; save the one alone"
_LACKING = "a part of the download is missing, or the weights are of another model"
_MERGE = "load it with peft, call merge_and_unload() and save_pretrained()"
_FLOATS = "use the model that it was made from, in F32, F16 or BF16"
_FOREIGN = {  # parts of names: what has such tensors, and what to do
    **dict.fromkeys(("lora_A", "lora_B", "base_layer"), ("an adapter (LoRA)", _MERGE)),
    **dict.fromkeys(("qweight", "qzeros", "g_idx"), ("GPTQ or AWQ quantization", _FLOATS)),
    **dict.fromkeys(("SCB", "weight_format"), ("bitsandbytes' 8 bits", _FLOATS)),
    **dict.fromkeys(("absmax", "quant_map", "quant_state"), ("bitsandbytes' 4 bits", _FLOATS)),
    **dict.fromkeys(
        ("q_attn", "kv_attn"),
        ("the original SantaCoder", "use its converted twin, bigcode/gpt_bigcode-santacoder"),
    ),
}


def canonical(
    folder: Path, config: ModelConfig, stored: Mapping[str, Stored], notices: list[str]
) -> dict[str, Tensor]:
    """The tensors by our names; which were passed over is one of the `notices`.

    Raises:
        FormatError: tensors that are lacking, of another model, of an adapter or quantized.
    """
    _refuse_foreign(folder, stored)
    base = _base(folder, stored)
    names = _names(base, config.n_layers)
    tensors: dict[str, Tensor] = {}
    passed = []
    for name, (dtype, shape, data) in stored.items():
        new = names.get(name)
        if new is None and name.endswith(_HEAD) and base.startswith(name.removesuffix(_HEAD)):
            new = "output.weight"
        if new is None and _NEEDLESS.fullmatch(name):
            passed.append(name)
            continue
        if new is None or new in tensors:
            advice = "the weights are of another model than config.json"
            reject(folder, f"tensor {name[:80]}", "an unknown name", "a GPTBigCode tensor", advice)
        if dtype not in _TYPES or not shape or 0 in shape:
            reject(folder, f"tensor {name}", f"{dtype} {shape}"[:80], "F32, F16 or BF16, not empty")
        tensors[new] = Tensor(_TYPES[dtype], shape, data)
    missing = [name for name, new in names.items() if new not in tensors]
    if missing:
        reject(folder, "weights", f"no {missing[0][:80]}", f"{len(names)} tensors", _LACKING)
    if passed:
        notices.append(f"passed over what inference does not need: {listed(passed)}")
    return tensors


def listed(names: Iterable[str], most: int = 3) -> str:
    """Some of the names, and how many more there are."""
    first = sorted(names)
    rest = f" and {len(first) - most} more" if len(first) > most else ""
    return ", ".join(name[:80] for name in first[:most]) + rest


def _refuse_foreign(folder: Path, stored: Iterable[str]) -> None:
    for name in stored:
        part = next((part for part in name.split(".") if part in _FOREIGN), None)
        if part is not None:
            what, advice = _FOREIGN[part]
            reject(folder, f"tensor {name[:80]}", f"a tensor of {what}", "plain weights", advice)


def _base(folder: Path, stored: Iterable[str]) -> str:
    """What stands before `wte.weight`, and so before all names but that of the output matrix."""
    found = [name for name in stored if name == _EMBEDDING or name.endswith("." + _EMBEDDING)]
    if len(found) != 1:
        what = "two embeddings, " + " and ".join(sorted(found)[:2]) if found else f"no {_EMBEDDING}"
        advice = _ONE_ALONE if found else _LACKING
        reject(folder, "weights", what, "the tensors of one GPTBigCode model", advice)
    return found[0].removesuffix(_EMBEDDING)


def _names(base: str, n_layers: int) -> dict[str, str]:
    """Our name of every tensor that must be there."""
    names = {base + old: new for old, new in _GLOBAL.items()}
    for i in range(n_layers):
        for old, new in _LAYER.items():
            for part in ("weight", "bias"):
                names[f"{base}h.{i}.{old}.{part}"] = f"blk.{i}.{new}.{part}"
    return names
