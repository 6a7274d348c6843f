"""Write the model card, `docs/model_card.md`, from what a run left: no figure is typed by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from training import corpus
from training.corpus import Source
from training.shape import Shape

HERE = Path(__file__).parent
TEMPLATE = HERE / "card.md"
MEASUREMENTS = HERE / "measurements.json"
ORDERS = "prefix only", "prefix, suffix", "suffix, prefix"
CARD = HERE.parent / "docs" / "model_card.md"


def write() -> None:
    """Fill the template in and write the card."""
    CARD.write_text(render(), encoding="utf-8")


def render(measurements: Path = MEASUREMENTS) -> str:
    """The card's text, from `card.md`, `measurements.json` and the lock of the corpus."""
    figures = json.loads(measurements.read_text())
    measured = {
        kind: {name: entry["value"] for name, entry in figures[kind].items()}
        for kind in ("bytes", "functions", "lines", "bits_per_byte", "logs", "shipped")
    }
    shipped, others = measured["shipped"], figures["earlier"]
    sources = corpus.read_lock()
    shape = Shape()
    values = {
        **{f"shape_{key}": f"{getattr(shape, key):,}" for key in Shape.__dataclass_fields__},
        **_training(measured["logs"]["trained"]),
        "type": shipped["type"].upper(),
        "size_mb": f"{measured['bytes'][shipped['type']] / 1e6:.1f}",
        **{f"n_{split}": _totals(sources, split) for split in corpus.SPLITS},
        "bits_table": _bits(measured, others),
        "functions_table": _functions(measured["functions"], others),
        "lines_table": _lines(measured["lines"], others),
        "log_table": _log(measured["logs"]["trained"]),
        "everyday": "\n\n".join(map(_answer, shipped["everyday"])),
        "copies_table": _copies(shipped["verbatim"]),
        "copied": _copied(shipped["verbatim"]),
        "held_out": ", ".join(f"{s.name} {s.version}" for s in _of(sources, "test")),
        "development": ", ".join(f"{s.name} {s.version}" for s in _of(sources, "dev")),
        "packages": "\n".join(f"- {_named(s)}" for s in _of(sources, "train")),
        "algorithms": "\n".join(f"- {_named(s)}" for s in _of(sources, "algorithms")),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{(\w+)\}", lambda found: str(values[found[1]]), template)


# ---- the corpus ----


def _of(sources: Iterable[Source], split: str) -> list[Source]:
    return [source for source in sources if source.split == split]


def _named(source: Source) -> str:
    return f"{source.name} {source.version} ({source.license})"


def _totals(sources: list[Source], split: str) -> str:
    chosen = _of(sources, split)
    n_files, n_bytes = sum(s.n_files for s in chosen), sum(s.n_bytes for s in chosen)
    return f"{len(chosen)} packages, {n_files:,} files, {n_bytes / 1e6:.1f} MB"


# ---- training ----


def _training(log: list[dict[str, Any]]) -> dict[str, str]:
    last = log[-1]
    return {
        "parameters": f"{log[0]['parameters'] / 1e6:.1f} million",
        "device": log[0]["device"],
        "updates": f"{last['update']:,}",
        "tokens": f"{last['tokens'] / 1e6:.0f} million",
        "seconds": f"{last['seconds']:,.0f}",
    }


def _log(log: list[dict[str, Any]]) -> str:
    """Training and development loss wherever the log has both."""
    points: dict[int, dict[str, Any]] = {}
    for entry in log[1:]:
        points.setdefault(entry["update"], {}).update(entry)
    rows = (
        (f"{p['update']:,}", f"{p['tokens'] / 1e6:.0f}", f"{p['loss']:.2f}", f"{p['dev_bpb']:.3f}")
        for p in points.values()
        if "dev_bpb" in p
    )
    head = ["update", "million tokens", "loss (nats a token)", "bits per byte, development split"]
    return _table(head, rows)


# ---- what was measured ----


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _bits(measured: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    ours = {name: bits for name, bits in measured["bits_per_byte"].items() if name != "xz"}
    theirs = {name: figures["bits_per_byte"] for name, figures in others.items()}
    sizes = {
        **measured["bytes"],
        **{name: f["bytes"] for name, f in others.items() if "bytes" in f},
    }
    rows = (
        (name, f"{sizes[name] / 1e6:.1f}" if name in sizes else "", f"{bits:.3f}")
        for name, bits in {**ours, **theirs, **measured["bits_per_byte"]["xz"]}.items()
    )
    return _table(["", "MB", "bits per byte"], rows)


def _functions(figures: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    names = {
        "end": "come to their end within 384 tokens",
        "parse": "come to their end and parse",
        "parse_whole_lines": "parse, counting the whole lines of those cut at 384 tokens",
    }
    columns = {**figures, **{name: other["functions"] for name, other in others.items()}}
    rows = ((names[key], *(f"{f[key]:.1%}" for f in columns.values())) for key in names)
    n = next(iter(columns.values()))["n"]
    return _table([f"of {n} functions", *columns], rows)


def _lines(figures: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    columns = {**figures, **{name: other["lines"] for name, other in others.items()}}
    rows = (
        (order, *(f"{f['exact_match']:.1%}, {f['edit_similarity']:.3f}" for f in row))
        for order in ORDERS
        for row in [[column[order] for column in columns.values()]]
    )
    return _table(["given are", *columns], rows)


def _answer(answer: Mapping[str, str]) -> str:
    end = "" if answer["finish_reason"] == "stop" else " ..."
    prompt = answer["prompt"].replace("\n", "\\n")
    return f"`{prompt}`\n\n````\n{answer['prompt']}{answer['text']}{end}\n````"


def _copies(found: Mapping[str, list[list[dict[str, Any]]]]) -> str:
    rows = []
    for name, texts in found.items():
        other = [[p for p in text if p["kind"] == "text"] for text in texts]
        longest = max((p["tokens"] for text in other for p in text), default=0)
        rows.append((name, len(texts), *(sum(map(bool, some)) for some in (texts, other)), longest))
    head = [
        "",
        "texts",
        "with a passage",
        "with one that is neither notice nor run",
        "longest of these, tokens",
    ]
    return _table(head, rows)


def _copied(found: Mapping[str, list[list[dict[str, Any]]]]) -> str:
    """Where passages are from that are neither: the longest of each package."""
    longest: dict[str, int] = {}
    for texts in found.values():
        for passage in (p for text in texts for p in text if p["kind"] == "text"):
            name = " and ".join(passage["packages"][:3])
            longest[name] = max(passage["tokens"], longest.get(name, 0))
    return ", ".join(f"{name} ({n} tokens)" for name, n in longest.items()) or "none"
