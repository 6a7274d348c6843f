"""Architecture: what a kind of model is, said once, for whoever reads, writes, converts or runs it.

Its tensors have a name, axes, a role and their names in other files; its settings have a key in
each file. Formats, quantizing, memory and benchmarks go by this and by roles, and name no tensor.
Each architecture fills one in, in a file of its own; `models.ARCHITECTURES` lists them.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from starcoder.model.config import ModelConfig

__all__ = ["Architecture", "Key", "Role", "Setting", "TensorSpec", "linear", "norm"]

_T = TypeVar("_T")


class Role(enum.Enum):
    """What a tensor is for. Types of mixes and costs go by it."""

    EMBEDDING = enum.auto()  # a row for each token; the output matrix too, where OUTPUT is absent
    OUTPUT = enum.auto()  # hidden values to logits; the only tensor that a file may leave out
    QKV = enum.auto()  # to queries, keys and values, in this order
    QUERIES = enum.auto()  # to one of them alone
    KEYS = enum.auto()
    VALUES = enum.auto()
    ATTENTION_OUTPUT = enum.auto()
    DOWN = enum.auto()  # the last matrix of the feed-forward part
    MATRIX = enum.auto()  # any other matrix
    POSITIONS = enum.auto()  # a row for each position, added as it is
    NORM = enum.auto()  # a vector that scales
    BIAS = enum.auto()  # a vector that is added

    @property
    def is_matrix(self) -> bool:
        """Whether inputs are multiplied by it, so that it may have any type."""
        return self not in (Role.POSITIONS, Role.NORM, Role.BIAS)

    @property
    def is_before_attention(self) -> bool:
        """Whether attention needs its product of every token, wanted or not."""
        return self in (Role.QKV, Role.QUERIES, Role.KEYS, Role.VALUES)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor, or the same one of every layer: `*` in names stands for the layer's number."""

    name: str  # canonical, which is GGUF's: "blk.*.attn_qkv.weight"
    axes: tuple[str, ...]  # attributes of ModelConfig, rows first: ("qkv_dim", "dim")
    role: Role
    hf: str  # in Hugging Face's files, behind what all names of a file begin with
    legacy: str = ""  # in ggml's .bin files, behind "model/"; "": these cannot hold the model
    # Hugging Face keeps the rows of each head together, its q, its k, its v, where no heads share.
    hf_by_head: bool = False
    layer: int | None = None

    @property
    def is_repeated(self) -> bool:
        """Whether every layer has one."""
        return "*" in self.name

    def in_layer(self, layer: int) -> TensorSpec:
        """That of one layer."""
        named = {key: getattr(self, key).replace("*", str(layer)) for key in _NAMES}
        return replace(self, layer=layer, **named)

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Its shape in a model of this configuration, row-major."""
        return tuple(getattr(config, axis) for axis in self.axes)


_NAMES = ("name", "hf", "legacy")


def linear(
    name: str,
    axes: tuple[str, str],
    role: Role,
    *,
    hf: str,
    legacy: str = "",
    hf_by_head: bool = False,
    bias: bool = True,
) -> Iterator[TensorSpec]:
    """A matrix, and mostly its bias; the names are those of both, without what tells them apart."""
    old = (f"{legacy}/w", f"{legacy}/b") if legacy else ("", "")
    yield TensorSpec(f"{name}.weight", axes, role, f"{hf}.weight", old[0], hf_by_head)
    if bias:
        yield TensorSpec(f"{name}.bias", axes[:1], Role.BIAS, f"{hf}.bias", old[1], hf_by_head)


def norm(name: str, *, hf: str, legacy: str = "", bias: bool = True) -> Iterator[TensorSpec]:
    """What scales normed values, and mostly what is added to them."""
    old = (f"{legacy}/g", f"{legacy}/b") if legacy else ("", "")
    yield TensorSpec(f"{name}.weight", ("dim",), Role.NORM, f"{hf}.weight", old[0])
    if bias:
        yield TensorSpec(f"{name}.bias", ("dim",), Role.BIAS, f"{hf}.bias", old[1])


@dataclass(frozen=True, slots=True)
class Key:
    """How a kind of file spells a setting.

    A value that is absent is `default`, or what `default` makes of the settings before it; with
    None it must be there. What is there becomes the setting's value by `words`, which lists what is
    accepted, or by `meaning`, from the value and the settings before it.
    """

    name: str
    default: Any = None
    kind: type = int  # of the value in the file
    words: Mapping[str, str] | None = None
    meaning: Callable[[Any, Mapping[str, Any]], Any] | None = None

    def default_after(self, known: Mapping[str, Any]) -> Any:
        """The value where the file has none."""
        return self.default(known) if callable(self.default) else self.default

    def understood(self, value: Any, known: Mapping[str, Any]) -> Any:
        """The setting that a value in the file means."""
        if self.words is not None:
            return self.words[value]
        return value if self.meaning is None else self.meaning(value, known)

    def spelled(self, value: Any) -> Any:
        """The first word for a setting: what is written."""
        if self.words is None:
            return value
        return next(word for word, meaning in self.words.items() if meaning == value)


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of ModelConfig, which has its bounds, and its key in config.json and in GGUF files.

    Keys of GGUF stand behind the architecture's name and a dot; None: other keys tell.
    """

    field: str
    hf: Key
    gguf: Key | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Architecture:
    """A kind of model."""

    name: str  # as in ModelConfig
    title: str  # for people: "GPTBigCode"
    gguf: str  # what GGUF files call it: general.architecture, and the start of its keys
    hf: str  # what config.json calls it: model_type
    hf_class: str  # and the class among its `architectures`
    models: str  # of this kind, for people
    tensors: tuple[TensorSpec, ...]  # in the order of files; those of layers are repeated together
    settings: tuple[Setting, ...]  # in the order of files
    record: Callable[[Any], None]  # with a `Recorder`: the steps from token ids to logits
    # What config.json must say if it says anything, or one of several things; from the settings.
    hf_demands: Callable[[ModelConfig], Mapping[str, tuple[Any, ...]]] = lambda _: {}
    hf_needless: tuple[str, ...] = ()  # ends of names of tensors that are passed over
    # Parts of names that only another kind of weights has: what it is, and what to do.
    hf_foreign: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def has_legacy(self) -> bool:
        """Whether ggml's .bin files can hold such a model."""
        return all(spec.legacy for spec in self.tensors)

    def specs(self, n_layers: int) -> dict[str, TensorSpec]:
        """Every tensor of a model of so many layers by its canonical name, in the order of files.

        The output matrix is among them, though a file may leave it out.
        """
        specs: dict[str, TensorSpec] = {}
        repeated = [spec for spec in self.tensors if spec.is_repeated]
        for spec in self.tensors:
            layers = range(n_layers if spec is repeated[0] else 0)
            group = [one.in_layer(layer) for layer in layers for one in repeated]
            specs |= {one.name: one for one in (group if spec.is_repeated else [spec])}
        return specs

    def in_order(self, tensors: Mapping[str, _T], n_layers: int) -> dict[str, _T]:
        """Tensors by canonical name in the order of files; what is not declared comes last."""
        first = {name: tensors[name] for name in self.specs(n_layers) if name in tensors}
        return first | dict(tensors)

    def name_of(self, role: Role) -> str:
        """The canonical name of the one tensor with this role."""
        (name,) = (spec.name for spec in self.tensors if spec.role is role)
        return name

    @property
    def embedding(self) -> str:
        """The name of the embedding."""
        return self.name_of(Role.EMBEDDING)

    def output(self, names: Container[str]) -> str:
        """Of a model with tensors of these names, that of the one that makes logits."""
        own = self.name_of(Role.OUTPUT)
        return own if own in names else self.embedding
