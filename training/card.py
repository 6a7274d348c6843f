"""Write the model card, `docs/model_card.md`, from what a run left: no figure is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from training import corpus
from training.corpus import Source
from training.shape import Shape

HERE = Path(__file__).parent
TEMPLATE = HERE / "card.md"
MEASUREMENTS = HERE / "measurements.json"
CARD = HERE.parent / "docs" / "model_card.md"


def write() -> None:
    """Fill the template in and write the card."""
    CARD.write_text(render(), encoding="utf-8")


def render() -> str:
    """The card's text, from `card.md`, `measurements.json` and the lock of the corpus."""
    figures = json.loads(MEASUREMENTS.read_text())
    sources = list(corpus.read_lock().values())
    shape = Shape()
    values = {
        **figures["training"],
        **{f"shape_{key}": getattr(shape, key) for key in Shape.__dataclass_fields__},
        "size_mb": f"{figures['wheel_bytes'] / 1e6:.2f}",
        **{f"logits_{key}": f"{value:.1e}" for key, value in figures["transformers"].items()},
        **{f"n_{split}": _totals(sources, split) for split in ("train", "dev", "test")},
        "bits_table": _bits(figures["bits_per_byte"]),
        "functions_table": _functions(figures["functions"]),
        "lines_table": _lines(figures["lines"]),
        "log_table": _log(figures["log"]),
        "rounds_table": _rounds(figures["rounds"]),
        "course_rounds": len(figures["rounds"]),
        "course_texts": sum(int(r["texts"]) for r in figures["rounds"]),
        "held_out": ", ".join(f"{s.name} {s.version}" for s in _of(sources, "test")),
        "development": ", ".join(f"{s.name} {s.version}" for s in _of(sources, "dev")),
        "packages": _packages(_of(sources, "train")),
    }
    text = TEMPLATE.read_text()
    for key, value in values.items():
        text = text.replace("{" + key + "}", str(value))
    return text


def _of(sources: Iterable[Source], split: str) -> list[Source]:
    return [source for source in sources if source.split == split]


def _totals(sources: list[Source], split: str) -> str:
    chosen = _of(sources, split)
    n_files, n_bytes = sum(s.n_files for s in chosen), sum(s.n_bytes for s in chosen)
    return f"{len(chosen)} packages, {n_files:,} files, {n_bytes / 1e6:.1f} MB"


def _table(head: list[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _bits(figures: dict[str, float]) -> str:
    return _table(
        ["", "bits per byte"], ((name, f"{value:.3f}") for name, value in figures.items())
    )


def _functions(figures: dict[str, float]) -> str:
    names = {
        "end": "come to their end within 384 tokens",
        "parse": "come to their end and parse",
        "parse_whole_lines": "parse, counting the whole lines of those cut at 384 tokens",
    }
    rows = ((names[key], f"{figures[key]:.1%}") for key in names)
    return _table([f"of {figures['n']} functions", ""], rows)


def _lines(figures: dict[str, dict[str, float]]) -> str:
    rows = (
        (name, f"{row['exact_match']:.1%}", f"{row['edit_similarity']:.3f}")
        for name, row in figures.items()
    )
    return _table(["the model is given", "exact match", "edit similarity"], rows)


def _log(points: list[dict[str, Any]]) -> str:
    rows = ((p["step"], f"{p['loss']:.2f}", f"{p['dev_bpb']:.3f}") for p in points)
    return _table(["step", "loss (nats a token)", "bits per byte, development split"], rows)


def _rounds(rounds: list[dict[str, Any]]) -> str:
    rows = ((int(r["round"]), f"{r['looping']:.0%}", f"{r['good']:.0%}") for r in rounds)
    return _table(["round", "of the texts repeat themselves", "end and parse"], rows)


def _packages(sources: list[Source]) -> str:
    return "\n".join(f"- {s.name} {s.version} ({s.license})" for s in sources)
