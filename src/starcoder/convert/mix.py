"""Mixes: which type each tensor of a quantized file gets, from the name the user gives.

Vectors and position embeddings stay F32. In GGUF files the choice is llama.cpp's, tensor by tensor;
legacy files have one type for all matrices, as ggml's quantizer wrote them. docs/files.md has the
table in words.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

from starcoder.core.tensor import TensorType
from starcoder.errors import InputError
from starcoder.model.architecture import Role, TensorSpec
from starcoder.model.config import ModelConfig

__all__ = ["Mix", "all_mixes", "find_mix", "find_type", "fit", "fits"]

_F16 = TensorType.F16
_Q4_0, _Q5_0, _Q5_1, _Q8_0 = TensorType.Q4_0, TensorType.Q5_0, TensorType.Q5_1, TensorType.Q8_0
_Q2, _Q3, _Q4, _Q5, _Q6 = (TensorType[f"Q{n}_K"] for n in range(2, 7))


@dataclass(frozen=True, slots=True)
class Mix:
    """A name that users know, the type of most matrices, and llama.cpp's number for the file."""

    name: str
    base: TensorType
    number: int
    is_mix: bool = False  # holds several types by its nature: nothing for legacy files


def _plain(name: str) -> Mix:
    kind = TensorType[name.upper()]
    return Mix(name, kind, kind.gguf_file)


_PLAIN = "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 iq4_nl q2_k q3_k q4_k q5_k q6_k"
_MIXED = (
    Mix("q3_k_s", _Q3, 11, is_mix=True),
    Mix("q3_k_m", _Q3, 12, is_mix=True),
    Mix("q3_k_l", _Q3, 13, is_mix=True),
    Mix("q4_k_s", _Q4, 14, is_mix=True),
    Mix("q4_k_m", _Q4, 15, is_mix=True),
    Mix("q5_k_s", _Q5, 16, is_mix=True),
    Mix("q5_k_m", _Q5, 17, is_mix=True),
)
_MIXES = {mix.name: mix for mix in (*map(_plain, _PLAIN.split()), *_MIXED)}
# What ggml's quantizer takes as its last argument.
_BY_NUMBER = {kind.ggml_file: kind.name.lower() for kind in TensorType}
_GGML_NUMBERS = {str(n): _BY_NUMBER[n] for n in sorted(n for n in _BY_NUMBER if n is not None)}


def find_mix(text: str, where: str = "type") -> Mix:
    """The mix that a user names, in any case, or by ggml's number; `where` is the option.

    Raises:
        InputError: there is none of that name.
    """
    mix = _MIXES.get(_GGML_NUMBERS.get(text, text.lower()))
    if mix is None:
        numbers = ", ".join(f"{number} for {name}" for number, name in _GGML_NUMBERS.items())
        raise _unknown(where, text, list(_MIXES), f"or a number: {numbers}")
    return mix


def all_mixes() -> tuple[Mix, ...]:
    """Every mix that can be named."""
    return tuple(_MIXES.values())


def find_type(text: str, where: str = "type") -> TensorType:
    """The type of a single tensor that a user names; `where` is the option.

    Raises:
        InputError: there is none of that name.
    """
    kind = TensorType.__members__.get(text.upper())
    if kind is None:
        raise _unknown(where, text, [name.lower() for name in TensorType.__members__])
    return kind


def _unknown(where: str, text: str, names: list[str], advice: str = "") -> InputError:
    """The error of an unknown name, with the nearest known names, or all if none is near."""
    found, typed = repr(text[:40]), text[:40].lower()
    near = [name for name in names if typed and name.startswith(typed)]
    near = near or [name for name in names if typed.startswith(f"{name}_")]
    near = near or difflib.get_close_matches(typed, names)
    if not near:
        return InputError(where, found, " ".join(names), advice)
    *some, last = near
    which = f"{', '.join(some)} or {last}" if some else last
    return InputError(where, found, "the name of a type", f"did you mean {which}?")


# ------------------------------------------------------------------------------------------------
# GGUF: llama.cpp's choice


def choose(mix: Mix, config: ModelConfig, spec: TensorSpec, *, is_output: bool) -> TensorType:
    """The type that llama.cpp gives a matrix; what its columns allow is for `fit`."""
    if mix.base.block_len == 1:
        return mix.base
    if is_output:
        whole = config.dim % mix.base.block_len == 0
        return _Q6 if whole and mix.base is not _Q8_0 else _Q8_0
    role = Role.QKV if spec.role is Role.VALUES else spec.role  # values alone are as vital
    rule = _RULES.get(_SAME.get(mix.name, mix.name), {}).get(role)
    kind = rule(_Place(spec.layer, config)) if rule and spec.layer is not None else None
    return kind or mix.base


class _Place:
    """A layer, and what the rules ask of it."""

    def __init__(self, layer: int, config: ModelConfig) -> None:
        n = config.n_layers
        self.layer = layer
        self.sixteenth, self.eighth = layer < n // 16, layer < n // 8
        # The first and last eighth, and every third layer between them.
        self.vital = self.eighth or layer >= 7 * n // 8 or (layer - n // 8) % 3 == 2
        self.shared = config.n_heads // config.n_kv_heads >= 4  # key and value heads are few


_Rule = Callable[[_Place], TensorType | None]
_SAME = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}  # llama.cpp's short names
_VITAL: dict[Role, _Rule] = {
    Role.QKV: lambda at: _Q6 if at.vital else None,
    Role.DOWN: lambda at: _Q6 if at.vital else None,
}
_RULES: dict[str, dict[Role, _Rule]] = {
    "iq4_nl": {
        Role.QKV: lambda at: _Q5 if at.shared else None,
        Role.DOWN: lambda at: _Q5 if at.eighth else None,
    },
    "q2_k": {
        Role.QKV: lambda at: _Q4 if at.shared else _Q3,
        Role.ATTENTION_OUTPUT: lambda _: _Q3,
        Role.DOWN: lambda _: _Q3,
    },
    "q3_k_m": {
        Role.QKV: lambda at: _Q5 if at.layer < 2 else _Q4,
        Role.ATTENTION_OUTPUT: lambda _: _Q4,
        Role.DOWN: lambda at: _Q5 if at.sixteenth else _Q4,
    },
    "q3_k_l": dict.fromkeys((Role.QKV, Role.ATTENTION_OUTPUT, Role.DOWN), lambda _: _Q5),
    "q4_k_s": {
        Role.QKV: lambda at: _Q5 if at.layer < 4 else None,
        Role.DOWN: lambda at: _Q5 if at.eighth else None,
    },
    "q4_k_m": _VITAL,
    "q5_k_m": _VITAL,
}


# ------------------------------------------------------------------------------------------------
# What rows allow

_FALLBACKS = {_Q2: _Q4_0, _Q3: _Q4_0, _Q4: _Q5_0, _Q5: _Q5_1, _Q6: _Q8_0}


def fit(kind: TensorType, n_cols: int) -> TensorType:
    """`kind`, or the nearest type whose blocks fill rows of `n_cols` weights."""
    for candidate in (kind, _FALLBACKS.get(kind, _F16)):
        if n_cols % candidate.block_len == 0:
            return candidate
    return _F16


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern is in a tensor's name; `*` and `?` stand for any text."""
    return fnmatch.fnmatchcase(name, f"*{pattern}*")
