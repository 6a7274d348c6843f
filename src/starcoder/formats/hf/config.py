"""config.json of a Hugging Face directory: the shapes, and the kinds of model that are refused.

Unknown keys are ignored. What kinds of tokens it names, `hf.ends` knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from starcoder.formats.hf.files import check_file
from starcoder.formats.io.json import load_json
from starcoder.formats.io.reject import reject, shown
from starcoder.model.architecture import Architecture, Key
from starcoder.model.config import ModelConfig
from starcoder.model.models import ARCHITECTURES

__all__ = ["Settings", "read_config"]

_MAX_INTEGER = 1 << 63
_MAX_JSON = 1 << 20


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
    architecture = _architecture(settings, notices)
    _check_quantization(settings)
    known: dict[str, Any] = {}
    for setting in architecture.settings:
        value = _value(settings, setting.hf, setting.hf.default_after(known))
        known[setting.field] = setting.hf.understood(value, known)
    config = ModelConfig(
        architecture=architecture.name,
        name=shown(settings.get("_name_or_path", str, "") or settings.path.parent.name),
        source=str(settings.path),
        **known,
    )
    for key, accepted in architecture.hf_demands(config).items():
        settings.demand(key, accepted[0], accepted)
    return config


def _value(settings: Settings, key: Key, default: Any) -> Any:
    if key.words is not None:
        return settings.demand(key.name, default, tuple(key.words))
    if key.kind is int:
        return settings.integer(key.name, default)
    return settings.get(key.name, key.kind, default)


# ------------------------------------------------------------------------------------------------
# What is refused by its name


def _architecture(settings: Settings, notices: list[str]) -> Architecture:
    """One of ours; the kinds that are taken for one of them have advice of their own."""
    values = settings.values
    kind, code = values.get("model_type"), values.get("auto_map")
    classes = values.get("architectures")
    named = classes if isinstance(classes, list) else []
    custom = code is not None or "attention_head_type" in values
    ours = {architecture.hf: architecture for architecture in ARCHITECTURES.values()}
    if isinstance(kind, str) and kind in ours:
        if code is not None and ours[kind].hf_class not in named:
            _refuse_code(settings, code)
        if code is not None:
            notices.append("config.json names code of its own (auto_map), which is never run")
    elif "GPT2LMHeadCustomModel" in named or (kind == "gpt2" and custom):
        advice = "use its converted twin, bigcode/gpt_bigcode-santacoder"
        reject(settings.path, "", "SantaCoder with its own code", _titles(), advice)
    elif kind == "starcoder2":
        advice = "StarCoder2 is not supported yet; use a model of the first StarCoder family"
        reject(settings.path, "model_type", "'starcoder2'", " or ".join(map(repr, ours)), advice)
    elif code is not None:
        _refuse_code(settings, code)
    return ours[settings.demand("model_type", None, tuple(ours))]


def _titles() -> str:
    return f"a {' or '.join(one.title for one in ARCHITECTURES.values())} model"


def _refuse_code(settings: Settings, code: Any) -> NoReturn:
    what = next(iter(code.values()), "") if isinstance(code, dict) else ""
    found = f"a model with code of its own ({str(what)[:80]})"
    classes = " or ".join(architecture.hf_class for architecture in ARCHITECTURES.values())
    advice = f"no code of a model is run; use a model of class {classes}"
    reject(settings.path, "auto_map", found, _titles(), advice)


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
