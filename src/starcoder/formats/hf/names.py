"""Tensors of a Hugging Face directory under our names, whatever their common prefix.

`transformer.h.0.ln_1.weight` is also found as `h.0.ln_1.weight`, or behind `module.` and
`base_model.model.`: programs that train wrap a model, and save the wrapping with it. What they add
and inference does not need is passed over; what changes the weights is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from starcoder.core.tensor import Tensor, TensorType
from starcoder.formats.hf.safetensors import Stored
from starcoder.formats.io.reject import reject
from starcoder.model.architecture import Architecture, Role
from starcoder.model.config import ModelConfig

__all__ = ["canonical", "listed"]

_TYPES = {"F32": TensorType.F32, "F16": TensorType.F16, "BF16": TensorType.BF16}

_VALUE_HEAD = "v_head"  # of reinforcement learning

_ONE_ALONE = "there are two models in it, as of training with a reference; save the one alone"
_LACKING = "a part of the download is missing, or the weights are of another model"
_MERGE = "load it with peft, call merge_and_unload() and save_pretrained()"
_FLOATS = "use the model that it was made from, in F32, F16 or BF16"
_FOREIGN = {  # parts of names: what has such tensors, and what to do
    **dict.fromkeys(("lora_A", "lora_B", "base_layer"), ("an adapter (LoRA)", _MERGE)),
    **dict.fromkeys(("qweight", "qzeros", "g_idx"), ("GPTQ or AWQ quantization", _FLOATS)),
    **dict.fromkeys(("SCB", "weight_format"), ("bitsandbytes' 8 bits", _FLOATS)),
    **dict.fromkeys(("absmax", "quant_map", "quant_state"), ("bitsandbytes' 4 bits", _FLOATS)),
}


def canonical(
    folder: Path,
    architecture: Architecture,
    config: ModelConfig,
    stored: Mapping[str, Stored],
    notices: list[str],
) -> dict[str, Tensor]:
    """The tensors by our names; which were passed over is one of the `notices`.

    Raises:
        FormatError: tensors that are lacking, of another model, of an adapter or quantized.
    """
    _refuse_foreign(folder, {**_FOREIGN, **architecture.hf_foreign}, stored)
    base = _base(folder, architecture, stored)
    specs = architecture.specs(config.n_layers).values()
    names = {base + spec.hf: spec.name for spec in specs if spec.role is not Role.OUTPUT}
    (head,) = (spec for spec in specs if spec.role is Role.OUTPUT)
    tensors: dict[str, Tensor] = {}
    passed = []
    for name, (dtype, shape, data) in stored.items():
        new = names.get(name)
        if new is None and name.endswith(head.hf) and base.startswith(name.removesuffix(head.hf)):
            new = head.name
        if new is None and _is_needless(name, architecture):
            passed.append(name)
            continue
        if new is None or new in tensors:
            expected = f"a {architecture.title} tensor"
            advice = "the weights are of another model than config.json"
            reject(folder, f"tensor {name[:80]}", "an unknown name", expected, advice)
        if dtype not in _TYPES or not shape or 0 in shape:
            reject(folder, f"tensor {name}", f"{dtype} {shape}"[:80], "F32, F16 or BF16, not empty")
        tensors[new] = Tensor(_TYPES[dtype], shape, data)
    missing = [name for name, new in names.items() if new not in tensors]
    if missing:
        reject(folder, "weights", f"no {missing[0][:80]}", f"{len(names)} tensors", _LACKING)
    if passed:
        notices.append(f"passed over what inference does not need: {listed(passed)}")
    return tensors


def _is_needless(name: str, architecture: Architecture) -> bool:
    """Whether it is a constant that old versions saved with the weights, or part of training."""
    dotted = f".{name}"
    ends = tuple(f".{end}" for end in architecture.hf_needless)
    return dotted.endswith(ends) or f".{_VALUE_HEAD}." in dotted


def listed(names: Iterable[str], most: int = 3) -> str:
    """Some of the names, and how many more there are."""
    first = sorted(names)
    rest = f" and {len(first) - most} more" if len(first) > most else ""
    return ", ".join(name[:80] for name in first[:most]) + rest


def _refuse_foreign(
    folder: Path, foreign: Mapping[str, tuple[str, str]], stored: Iterable[str]
) -> None:
    for name in stored:
        part = next((part for part in name.split(".") if part in foreign), None)
        if part is not None:
            what, advice = foreign[part]
            reject(folder, f"tensor {name[:80]}", f"a tensor of {what}", "plain weights", advice)


def _base(folder: Path, architecture: Architecture, stored: Iterable[str]) -> str:
    """What stands before the embedding's name, and so before all names but the output matrix's."""
    (own,) = (spec.hf for spec in architecture.tensors if spec.role is Role.EMBEDDING)
    found = [name for name in stored if name == own or name.endswith("." + own)]
    if len(found) != 1:
        what = "two embeddings, " + " and ".join(sorted(found)[:2]) if found else f"no {own}"
        advice = _ONE_ALONE if found else _LACKING
        expected = f"the tensors of one {architecture.title} model"
        reject(folder, "weights", what, expected, advice)
    return found[0].removesuffix(own)
