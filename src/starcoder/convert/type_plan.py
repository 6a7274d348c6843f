"""Which type each tensor of a converted model gets: a mix, the user's exceptions, what rows allow.

An exception that changes nothing is a mistake of spelling, and said before hours of work. The
rules of mixes are in `mix`; the bytes are made by `quantize`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from starcoder.convert import mix as mixes
from starcoder.convert.mix import Mix
from starcoder.core.tensor import Tensor, TensorType
from starcoder.errors import FormatError, InputError
from starcoder.model import models
from starcoder.model.architecture import Role, TensorSpec
from starcoder.model.checkpoint import Checkpoint

__all__ = ["Choice", "plan"]

_OUTPUT_OPTION, _EMBEDDING_OPTION = "--output-type", "--embedding-type"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user wants: a mix, and exceptions from it."""

    mix: Mix | None = None  # None: every tensor keeps its type
    output_type: TensorType | None = None
    embedding_type: TensorType | None = None
    patterns: Sequence[tuple[str, TensorType]] = field(default=())
    legacy: bool = False  # one type for all matrices


def plan(checkpoint: Checkpoint, choice: Choice) -> tuple[dict[str, TensorType], list[str]]:
    """The type of every tensor, and what the user should know about it.

    Raises:
        FormatError: tensors that do not fit the configuration.
        InputError: exceptions that a legacy file cannot hold, or that apply to no tensor.
    """
    specs = _checked(checkpoint)
    matrices = {n: t for n, t in checkpoint.tensors.items() if specs[n].role.is_matrix}
    types = {name: tensor.type for name, tensor in checkpoint.tensors.items()}
    if choice.legacy:
        wanted = _wanted_legacy(choice)
        notes: list[str] = []
        if wanted is not None:
            types |= dict.fromkeys(matrices, _one_type(wanted, matrices, notes))
        # ggml's program reads vectors and positions as F32 alone, which holds F16 and BF16 exactly.
        types |= dict.fromkeys(types.keys() - matrices.keys(), TensorType.F32)
        return types, notes + _note_loss(checkpoint, types)
    exceptions = list(_exceptions(checkpoint, choice, specs))
    asked = _decide(exceptions)
    replaced: dict[_Fallback, list[str]] = {}
    for name, tensor in matrices.items():
        kind = asked[name] if name in asked else _of_mix(choice, checkpoint, specs[name])
        types[name] = mixes.fit(kind, tensor.shape[1])
        if types[name] is not kind:
            fallback = _Fallback(tensor.shape[1], kind, types[name])
            replaced.setdefault(fallback, []).append(name)
    types |= {name: kind for name, kind in asked.items() if name not in matrices}
    notes = [fallback.note(names) for fallback, names in replaced.items()]
    return types, notes + _note_loss(checkpoint, types)


def _of_mix(choice: Choice, checkpoint: Checkpoint, spec: TensorSpec) -> TensorType:
    if choice.mix is None:
        return checkpoint.tensors[spec.name].type
    is_output = models.find(checkpoint).output(checkpoint.tensors) == spec.name
    return mixes.choose(choice.mix, checkpoint.config, spec, is_output=is_output)


def _wanted_legacy(choice: Choice) -> TensorType | None:
    advice = "write a GGUF file instead"
    if choice.patterns or not choice.output_type is choice.embedding_type is None:
        raise InputError("types", "one of a tensor's own", "none in a legacy file", advice)
    if choice.mix is not None and choice.mix.is_mix:
        raise InputError(
            "type", choice.mix.name, f"{choice.mix.base.name.lower()} in a legacy file", advice
        )
    return choice.mix.base if choice.mix else None


def _one_type(wanted: TensorType, matrices: Mapping[str, Tensor], notes: list[str]) -> TensorType:
    """The first type that fits all matrices."""
    kind = wanted
    for tensor in matrices.values():
        kind = mixes.fit(kind, tensor.shape[1])
    if kind is not wanted:
        found = f"rows that are no whole blocks of {wanted.block_len}"
        notes.append(
            f"{found}: all matrices are {kind.name.lower()} instead of {wanted.name.lower()}"
        )
    return kind


# ------------------------------------------------------------------------------------------------
# Exceptions


@dataclass(frozen=True, slots=True)
class _Exception:
    """A type that the user wants for some tensors."""

    option: str  # as the command line spells it
    type: TensorType
    fitting: tuple[TensorSpec, ...]  # tensors that it names

    @property
    def names(self) -> Iterator[str]:
        """Those of them that can have the type: not vectors, nor positions as blocks."""
        for spec in self.fitting:
            is_float = spec.role is Role.POSITIONS and self.type.block_len == 1
            if spec.role.is_matrix or is_float:
                yield spec.name


def _exceptions(
    checkpoint: Checkpoint, choice: Choice, specs: Mapping[str, TensorSpec]
) -> Iterator[_Exception]:
    """In the order in which they count."""
    architecture = models.find(checkpoint)
    if choice.output_type is not None:
        output = specs[architecture.output(checkpoint.tensors)]
        yield _Exception(_OUTPUT_OPTION, choice.output_type, (output,))
    if choice.embedding_type is not None:
        embedding = specs[architecture.embedding]
        yield _Exception(_EMBEDDING_OPTION, choice.embedding_type, (embedding,))
    for pattern, kind in choice.patterns:
        fitting = tuple(specs[name] for name in checkpoint.tensors if mixes.fits(pattern, name))
        yield _Exception(f"--tensor-type {pattern}={kind.name.lower()}", kind, fitting)


def _decide(exceptions: Sequence[_Exception]) -> dict[str, TensorType]:
    """The type of each tensor that an exception names, by the first that does.

    Raises:
        InputError: an exception that no tensor follows.
    """
    types: dict[str, TensorType] = {}
    for exception in exceptions:
        for name in exception.names:
            types.setdefault(name, exception.type)
        if not any(types[name] is exception.type for name in exception.names):
            found, expected, advice = _why_idle(exception)
            raise InputError(exception.option, found, expected, advice)
    return types


def _why_idle(exception: _Exception) -> tuple[str, str, str]:
    if not exception.fitting:
        advice = "starcoder inspect shows the names"
        return "no tensor of such a name", "part of a name, with * and ?", advice
    first = next(exception.names, None)
    if exception.option == _EMBEDDING_OPTION:  # only --output-type comes before it
        found = "a model whose output matrix is its embedding"
        return found, f"one of {_OUTPUT_OPTION} and {_EMBEDDING_OPTION}", "leave the other out"
    if first is not None:
        advice = "leave one of them out, or change their order"
        return f"{first}, which an option before it names", "a tensor of its own", advice
    if any(spec.role is Role.POSITIONS for spec in exception.fitting):
        advice = "other programs read no other type there"
        return "position embeddings", "f32, f16 or bf16 for these", advice
    return f"vectors alone, such as {exception.fitting[0].name}", "a matrix", "vectors stay f32"


# ------------------------------------------------------------------------------------------------
# Notes and checks


class _Fallback(NamedTuple):
    """A type that rows of some length cannot have, and what they have instead."""

    n_cols: int
    kind: TensorType
    instead: TensorType

    def note(self, names: Sequence[str]) -> str:
        """It is said once for all tensors of whom it is true."""
        many = len(names) > 1
        which = f"{len(names)} tensors" if many else names[0]
        types = f"{self.instead.name.lower()} instead of {self.kind.name.lower()}"
        why = f"{self.n_cols} columns are no whole blocks of {self.kind.block_len}"
        return f"{which} with rows of {self.n_cols} {'are' if many else 'is'} {types}: {why}"


def _note_loss(checkpoint: Checkpoint, types: Mapping[str, TensorType]) -> list[str]:
    """A warning where weights that were rounded once are rounded again."""
    changed = [t.type for name, t in checkpoint.tensors.items() if types[name] is not t.type]
    rounded = [kind for kind in changed if kind.block_len > 1]
    if not rounded:
        return []
    before = max(set(rounded), key=rounded.count).name.lower()
    lost = "what that lost is lost, and rounding again loses more than quantizing the original does"
    return [f"the weights were already rounded to {before}; {lost}"]


def _checked(checkpoint: Checkpoint) -> dict[str, TensorSpec]:
    """What each tensor is, once every one that is declared is there, in its shape, and no other."""
    architecture = models.find(checkpoint)
    specs = architecture.specs(checkpoint.config.n_layers)
    for name, spec in specs.items():
        if name in checkpoint.tensors or spec.role is not Role.OUTPUT:
            checkpoint.take(name, *spec.shape(checkpoint.config))
    unknown = checkpoint.tensors.keys() - specs.keys()
    if unknown:
        where = f"{checkpoint.source}: tensor {min(unknown)}"
        expected = f"a {architecture.title} tensor"
        raise FormatError(where, "an unknown name", expected, "use another file")
    return specs
