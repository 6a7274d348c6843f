"""`starcoder inspect`: what a model file holds, as text or as JSON, on stdout."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starcoder.cli.progress import Progress
from starcoder.cli.rewrite import Pre
from starcoder.errors import FormatError, InputError

if TYPE_CHECKING:
    from starcoder.model.checkpoint import Checkpoint

__all__ = ["inspect"]

_DAMAGED = 1  # exit code: --check found a weight that is not finite
_TOTALS = ("n_parameters", "weight_bytes", "memory_bytes", "bits_a_weight")
# Keys of a GGUF file that say whose a model is, by the names that they are shown under.
_ORIGIN = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "description": "general.description",
}
_MAX_ORIGIN = 500  # characters
_HEADINGS = ("tensor", "shape", "type", "bytes", "bits a weight")


def inspect(
    source: Annotated[str, typer.Argument(metavar="FILE", help="A file, directory or Hub name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every weight; exit with 1 if one is not finite.")
    ] = False,
    graph: Annotated[
        bool, typer.Option("--graph", help="Print the steps that run the model; loads it.")
    ] = False,
    pre: Pre = None,
) -> int:
    """Show what a model file holds: architecture, vocabulary, tensors."""
    from starcoder import formats, hub

    if graph and (as_json or check):
        raise InputError("--graph", f"--{'json' if as_json else 'check'}", "one of them at a time")
    with Progress("download") as progress:
        path = hub.resolve(source, None, progress)
    checkpoint = formats.read(path, pre)
    if graph:
        print(_graph(checkpoint), flush=True)
        return 0
    damage = _damage(checkpoint) if check else None
    facts = _facts(checkpoint)
    if check:
        facts["finite"] = damage is None
        facts["damage"] = damage
    print(_json(facts) if as_json else _text(facts), flush=True)
    if damage is not None:
        print(f"starcoder: error: {damage}", file=sys.stderr)
        return _DAMAGED
    return 0


def _graph(checkpoint: Checkpoint) -> str:
    """The steps of the model, a line each."""
    from starcoder.convert import memory
    from starcoder.model import models

    memory.check(checkpoint, memory.Use(16, 16))
    return models.build(checkpoint).graph.text().rstrip()


def _damage(checkpoint: Checkpoint) -> str | None:
    """Where the first weight is that is not finite."""
    from starcoder.convert.quantize import check_finite, use_threads

    use_threads(None)
    with Progress("check") as progress:
        progress.start(checkpoint.nbytes)
        try:
            for nbytes in check_finite(checkpoint):
                progress.advance(nbytes)
        except FormatError as error:
            return str(error)
    return None


# ------------------------------------------------------------------------------------------------


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    from starcoder import formats
    from starcoder.convert.memory import Use, need_of
    from starcoder.model import models

    config, architecture = checkpoint.config, models.find(checkpoint)
    n_parameters = sum(math.prod(t.shape) for t in checkpoint.tensors.values())
    return {
        "source": checkpoint.source,
        "format": checkpoint.label,
        "n_parts": checkpoint.n_parts,
        "name": config.name,
        **{name: _origin(formats.carried_text(checkpoint, key)) for name, key in _ORIGIN.items()},
        "architecture": config.architecture,
        "n_ctx": config.n_ctx,
        "n_vocab": config.n_vocab,
        "dim": config.dim,
        "hidden_dim": config.hidden_dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.n_kv_heads,
        "norm_eps": config.norm_eps,
        "activation": config.activation,
        "tied_output": architecture.output(checkpoint.tensors) == architecture.embedding,
        "vocabulary": _vocabulary(checkpoint),
        "tensors": _tensors(checkpoint),
        "types": _types(checkpoint),
        "n_parameters": n_parameters,
        "weight_bytes": checkpoint.nbytes,
        "memory_bytes": need_of(checkpoint, Use(config.n_ctx, config.n_ctx)).total,
        "bits_a_weight": round(8 * checkpoint.nbytes / n_parameters, 3),
    }


def _origin(text: str | None) -> str | None:
    """What a file says of itself, if it says something, as far as somebody would read it."""
    if not text or not text.strip():
        return None
    return text if len(text) <= _MAX_ORIGIN else text[:_MAX_ORIGIN] + "..."


def _vocabulary(checkpoint: Checkpoint) -> dict[str, Any]:
    vocab = checkpoint.vocab
    names = {i: vocab.tokens[i].decode("utf-8", "replace") for i in sorted(vocab.special_ids)}
    return {
        "n_tokens": sum(1 for token in vocab.tokens if token),
        "n_padding": sum(1 for token in vocab.tokens if not token),
        "n_merges": len(vocab.merges),
        "split_digits": vocab.split_digits,
        "bos_id": vocab.bos_id,
        "eos_id": vocab.eos_id,
        "end_ids": sorted(vocab.end_ids),
        "special_tokens": {str(i): name for i, name in names.items()},
    }


def _tensors(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "type": tensor.type.name.lower(),
            "bytes": tensor.nbytes,
            "bits_a_weight": 8 * tensor.type.block_bytes / tensor.type.block_len,
        }
        for name, tensor in checkpoint.tensors.items()
    ]


def _types(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    types: dict[str, dict[str, int]] = {}
    for tensor in checkpoint.tensors.values():
        total = types.setdefault(tensor.type.name.lower(), {"n_tensors": 0, "bytes": 0})
        total["n_tensors"] += 1
        total["bytes"] += tensor.nbytes
    return types


# ------------------------------------------------------------------------------------------------


def _text(facts: dict[str, Any]) -> str:
    simple = {k: v for k, v in facts.items() if not isinstance(v, (dict, list))}
    totals = {k: simple.pop(k) for k in _TOTALS}
    simple = {k: v for k, v in simple.items() if k not in _ORIGIN or v is not None}
    is_checked, damage = simple.pop("finite", None) is not None, simple.pop("damage", None)
    lines = [f"{key:14} {_shown(value)}" for key, value in simple.items()]
    vocabulary = dict(facts["vocabulary"])
    specials = vocabulary.pop("special_tokens")
    lines += ["", *(f"{key:14} {_shown(value)}" for key, value in vocabulary.items())]
    lines += ["", *(f"{i:>14} {_shown(name)}" for i, name in specials.items())]
    lines += ["", *_table(facts["tensors"]), ""]
    for kind, total in facts["types"].items():
        lines.append(f"{kind:14} {total['n_tensors']} tensors, {total['bytes']:,} bytes")
    lines += [f"{key:14} {value:,}" for key, value in totals.items()]
    if is_checked:
        lines.append(f"{'check':14} {_shown(damage or _all_good(totals))}")
    return "\n".join(lines)


def _all_good(totals: dict[str, Any]) -> str:
    return f"all {totals['n_parameters']:,} weights are finite"


def _json(facts: dict[str, Any]) -> str:
    """JSON in which what does something to a terminal is escaped."""
    text = json.dumps(facts, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _shown(value: object) -> str:
    """A value as it may go to a terminal: no control characters from a file."""
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or None
    text = "none" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def _table(tensors: list[dict[str, Any]]) -> list[str]:
    rows = [_HEADINGS]
    for t in tensors:
        shape = " x ".join(map(str, t["shape"]))
        rows.append(
            (_shown(t["name"]), shape, t["type"], f"{t['bytes']:,}", f"{t['bits_a_weight']:g}")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{a:{widths[0]}}  {b:>{widths[1]}}  {c:{widths[2]}}  {d:>{widths[3]}}  {e:>{widths[4]}}"
        for a, b, c, d, e in rows
    ]
