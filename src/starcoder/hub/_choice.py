"""Which files of a repository make a model: a directory's, or one GGUF file of several, by type.

The same choice is made among the names that the Hub lists and among those that the cache has, so
that a copy is whole if a model can be chosen from it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from starcoder.hub._library import HubError

__all__ = ["Choice", "UnfitError", "choose"]

_NEEDED = ("config.json", "tokenizer.json")
_OTHER_VOCAB = ("vocab.json", "merges.txt")  # instead of tokenizer.json
_WANTED = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja"),
)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first kind that a model has
_PART = re.compile(r"-(\d{5})-of-(\d{5})(?=\.\w+$)")
_TYPE = re.compile(  # in a file's name: starcoder.Q4_K_M.gguf, UD-Q4_K_XL/..., -q4_0-00001-of-...
    r"(?<![a-z0-9])(b?f16|f32|fp16|fp32|(?:i|t)?q\d(?:_0_[48]_[48]|_k_[sml]|_k_x[sl]|_k|_[01]|_nl|_xx?s|_[sm])?)"
    r"(?![a-z0-9])"
)
_SAME = {"fp16": "f16", "fp32": "f32", "q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
_SHOWN = 12  # names in a message


class UnfitError(HubError):
    """A name that fits no file of the model, or several: no other copy will help."""


class Choice(NamedTuple):
    """The files to have, and the one to open: all are of the directory if that is None."""

    names: list[str]
    entry: str | None = None


def choose(names: Collection[str], wanted: str | None = None) -> Choice:
    """The files of a model among all there are; `wanted` is a type or a file's name.

    Raises:
        HubError: no model among them, or several.
    """
    files = _groups(name for name in names if _is_safe(name))
    if wanted is not None:
        return _file(files, names, wanted)
    try:
        return _directory(names)
    except HubError:
        whole = [file for file in files if file.is_gguf]
        if "config.json" in names or not whole:
            raise
        return _only(whole)


# ------------------------------------------------------------------------------------------------
# A directory


def _directory(names: Collection[str]) -> Choice:
    expected = "config.json, tokenizer.json and weights in safetensors or PyTorch's format"
    other = set(_OTHER_VOCAB) <= set(names) and "tokenizer.json" not in names
    if "adapter_config.json" in names and "config.json" not in names:
        advice = "merge it into its base model (peft's merge_and_unload) and save that"
        raise HubError("an adapter, no whole model", expected, advice)
    for name in _NEEDED[: 1 if other else 2]:
        if name not in names:
            raise HubError(f"no {name}", expected, "of another format, name the file itself")
    missing = []
    for kind in _WEIGHTS:
        weights, lacking = _weights(names, kind)
        missing += lacking
        if weights:
            break
    else:
        raise HubError(f"no {missing[0]}" if missing else f"no weights ({_WEIGHTS[0]})", expected)
    vocab = _OTHER_VOCAB if other else ("tokenizer.json",)
    return Choice([name for name in (*_WANTED, *vocab, *weights) if name in names])


def _weights(names: Collection[str], kind: str) -> tuple[list[str], list[str]]:
    """The files of weights of one kind, and the first part that a set of them lacks."""
    if kind in names:
        return [kind], []
    stem, _, suffix = kind.rpartition(".")
    parts = re.compile(rf"{stem}-(\d{{5}})-of-(\d{{5}})\.{suffix}")
    found = [name for name in names if parts.fullmatch(name)]
    sets: dict[str, set[str]] = {}
    for name in found:
        sets.setdefault(name.split("-of-")[1], set()).add(name)
    missing = []
    for end, have in sorted(sets.items()):
        due = [f"{stem}-{i + 1:05}-of-{end}" for i in range(int(end[:5]))]
        absent = [name for name in due if name not in have]
        if due and not absent:
            return [*due, f"{kind}.index.json"], []
        missing += absent[:1]
    return [], missing


# ------------------------------------------------------------------------------------------------
# One file of several


class _File(NamedTuple):
    """A model in a file of its own, or in the parts of one, by their numbers."""

    name: str  # without the number of a part
    type: str | None
    parts: dict[int, str]
    n_parts: int

    @property
    def is_gguf(self) -> bool:
        return self.name.lower().endswith(".gguf")

    @property
    def label(self) -> str:
        """What a user can write after the colon."""
        return self.type or self.name


def _groups(names: Iterable[str]) -> list[_File]:
    """All GGUF files, and ggml's of a type; parts of one are one."""
    files: dict[str, _File] = {}
    for name in sorted(names):
        kind = _type_in(name)
        lower = name.lower()
        is_ggml = lower.endswith(".bin") and kind and "pytorch_model" not in lower
        if not (lower.endswith(".gguf") or is_ggml) or "mmproj" in lower:
            continue
        part = _PART.search(name)
        number, n_parts = (int(part[1]), int(part[2])) if part else (1, 1)
        whole = _PART.sub(lambda m: f"-of-{m[2]}", name)
        files.setdefault(whole, _File(_PART.sub("", name), kind, {}, n_parts)).parts[number] = name
    return list(files.values())


def _type_in(name: str) -> str | None:
    """The type that a file's name names, or that of its folder."""
    for place in reversed(_PART.sub("", name).lower().split("/")):
        found: list[str] = _TYPE.findall(place)
        if found:
            return _SAME.get(found[-1], found[-1])
    return None


def _only(files: list[_File]) -> Choice:
    """The file of a repository that has only one."""
    if len(files) == 1:
        return _parts(files[0])
    raise UnfitError(f"GGUF files of {_listed(files)}", "one of them", "write owner/name:TYPE")


def _file(files: list[_File], names: Collection[str], wanted: str) -> Choice:
    fitting = _by_name(files, wanted) or _by_type(files, wanted)
    if len(fitting) == 1:
        return _parts(fitting[0])
    if wanted in names and not fitting:
        return _directory(names)  # a file of it: the directory is meant
    if fitting:
        several = ", ".join(file.parts[min(file.parts)] for file in fitting[:_SHOWN])
        found, advice = f"{len(fitting)} files of {wanted}: {several}", "write owner/name:FILE"
        raise UnfitError(found, "one of them", advice)
    if "." in wanted:  # the name of a file, as no type has one
        there = [file.parts[min(file.parts)] for file in files] or sorted(filter(_is_safe, names))
        raise UnfitError(f"no file {wanted}", f"one of {_cut(there)}")
    if files:
        raise UnfitError(f"no file of {wanted}", f"one of {_listed(files)}")
    advice = ""
    if any(name in names for name in ("config.json", "tokenizer.json")):
        advice = f"leave out :{wanted}, or convert the model to it with --type"
    raise UnfitError("no GGUF files", f"one of {wanted}", advice)


def _by_name(files: list[_File], wanted: str) -> list[_File]:
    """Files of this name, as it is spelled or else in any case, in any folder."""
    for same in (lambda name: name == wanted, lambda name: _tail(name, wanted)):
        found = [f for f in files if any(map(same, (f.name, *f.parts.values())))]
        if found:
            return found
    return []


def _tail(name: str, wanted: str) -> bool:
    return f"/{name.lower()}".endswith(f"/{wanted.lower()}")


def _by_type(files: list[_File], wanted: str) -> list[_File]:
    """Files of this type; of GGUF and ggml, GGUF."""
    kind = wanted.lower()
    found = [file for file in files if file.type == _SAME.get(kind, kind)]
    return [file for file in found if file.is_gguf] or found


def _parts(file: _File) -> Choice:
    missing = [i + 1 for i in range(file.n_parts) if i + 1 not in file.parts]
    if missing:
        found = f"no part {missing[0]} of {file.n_parts} of {file.name}"
        raise HubError(found, "all parts")
    names = [file.parts[i + 1] for i in range(file.n_parts)]
    return Choice(names, names[0])


def _listed(files: list[_File]) -> str:
    return _cut(list(dict.fromkeys(file.label for file in files)))


def _cut(labels: list[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + more


def _is_safe(name: str) -> bool:
    """Whether a name that the Hub gave stays in its folder, and is one to show."""
    parts = name.split("/")
    return name.isprintable() and all(p and p.strip(".") and len(p) < 250 for p in parts)
