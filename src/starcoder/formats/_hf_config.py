"""config.json of a Hugging Face directory: the shapes, and the kinds of model that are refused.

Unknown keys are ignored. What kinds of tokens it names, `_hf_ends` knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from starcoder.config import ACTIVATION_NAMES, ModelConfig
from starcoder.formats._bytes import load_json, reject, shown
from starcoder.formats._hf_files import check_file

__all__ = ["Settings", "read_config"]

_MAX_INTEGER = 1 << 63
_MAX_JSON = 1 << 20
_OURS = "GPTBigCodeForCausalLM"


class Settings:
    """config.json; each accessor demands the type that it returns."""

    def __init__(self, path: Path) -> None:
        self.path, self.values = path, load_json(check_file(path), _MAX_JSON)

    def get(self, key: str, kind: type, default: Any) -> Any:
        """The value of `key`, of this type; null is the default."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is not kind:
            reject(self.path, key, repr(value)[:80], f"a value of type {kind.__name__}")
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of at most 64 bits."""
        value: int = self.get(key, int, default)
        if abs(value) >= _MAX_INTEGER:
            reject(self.path, key, "a number of more than 64 bits", "a smaller one")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value: bool = self.get(key, bool, default)
        return value

    def demand(self, key: str, default: Any, accepted: tuple[Any, ...]) -> Any:
        """The value of `key`, which must be one that we can compute with."""
        value = self.values.get(key, default)
        if not any(value is a or (type(value) is type(a) and value == a) for a in accepted):
            expected = " or ".join(map(repr, accepted))
            reject(
                self.path, key, repr(value)[:80], expected, "this kind of model is not supported"
            )
        return value


def read_config(settings: Settings, notices: list[str]) -> ModelConfig:
    """The shapes.

    Raises:
        FormatError: another kind of model, a quantized one, or a value that is not as it should be.
    """
    _check_kind(settings, notices)
    _check_quantization(settings)
    settings.demand("scale_attn_weights", True, (True,))
    activation = settings.demand(
        "activation_function", "gelu_pytorch_tanh", tuple(ACTIVATION_NAMES)
    )
    dim, n_heads = settings.integer("n_embd"), settings.integer("n_head")
    n_kv_heads = 1 if settings.flag("multi_query", True) else n_heads
    settings.demand("num_key_value_heads", n_kv_heads, (n_kv_heads, None))
    return ModelConfig(
        architecture="gpt_bigcode",
        n_ctx=settings.integer("n_positions"),
        n_vocab=settings.integer("vocab_size"),
        dim=dim,
        hidden_dim=settings.integer("n_inner", 4 * dim),
        n_layers=settings.integer("n_layer"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        norm_eps=settings.get("layer_norm_epsilon", float, 1e-5),
        activation=ACTIVATION_NAMES[activation],
        name=shown(settings.get("_name_or_path", str, "") or settings.path.parent.name),
        source=str(settings.path),
    )


# ------------------------------------------------------------------------------------------------
# What is refused by its name


def _check_kind(settings: Settings, notices: list[str]) -> None:
    """Only GPTBigCode; the kinds that are taken for it have advice of their own."""
    values = settings.values
    kind, code = values.get("model_type"), values.get("auto_map")
    classes = values.get("architectures")
    named = classes if isinstance(classes, list) else []
    custom = code is not None or "attention_head_type" in values
    if kind == "gpt_bigcode":
        if code is not None and _OURS not in named:
            _refuse_code(settings, code)
        if code is not None:
            notices.append("config.json names code of its own (auto_map), which is never run")
    elif "GPT2LMHeadCustomModel" in named or (kind == "gpt2" and custom):
        advice = "use its converted twin, bigcode/gpt_bigcode-santacoder"
        reject(settings.path, "", "SantaCoder with its own code", "a GPTBigCode model", advice)
    elif kind == "starcoder2":
        advice = "StarCoder2 is not supported yet; use a model of the first StarCoder family"
        reject(settings.path, "model_type", "'starcoder2'", "'gpt_bigcode'", advice)
    elif code is not None:
        _refuse_code(settings, code)
    settings.demand("model_type", None, ("gpt_bigcode",))


def _refuse_code(settings: Settings, code: Any) -> NoReturn:
    what = next(iter(code.values()), "") if isinstance(code, dict) else ""
    found = f"a model with code of its own ({str(what)[:80]})"
    advice = "no code of a model is run; use a model of class GPTBigCodeForCausalLM"
    reject(settings.path, "auto_map", found, "a GPTBigCode model", advice)


def _check_quantization(settings: Settings) -> None:
    found = settings.values.get("quantization_config")
    if found is None:
        return
    table = found if isinstance(found, dict) else {}
    method = table.get("quant_method")
    if table.get("load_in_8bit") is True:
        method = "bitsandbytes, 8 bits"
    elif table.get("load_in_4bit") is True:
        method = "bitsandbytes, 4 bits"
    reject(
        settings.path,
        "quantization_config",
        f"weights quantized by another program ({str(method or 'unknown')[:40]})",
        "weights in F32, F16 or BF16",
        "use the model that it was made from; if the weights are floats, remove this key",
    )
