"""`python -m training.report MODEL.gguf ...`: measure models, and write their card.

The first model is the one that ships: it answers the everyday prompts, and what it writes is
searched for passages of its training text. Every figure is kept in `measurements.json` as soon as
it is there, with the digest of the weights it was measured on: a command that was killed goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from starcoder import LLM, formats
from training import card, corpus, measure, verbatim


class Measurements:
    """A JSON file of figures, written again with every new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep(
        self, kind: str, name: str, of: str, make: Callable[..., Any], *arguments: object
    ) -> None:
        """Make a figure, unless it was made of the same before."""
        entries = self._figures.setdefault(kind, {})
        if entries.get(name, {}).get("of") != of:
            print(f"{kind}, {name}", flush=True)
            entries[name] = {"of": of, "value": make(*arguments)}
            self._path.write_text(json.dumps(self._figures, indent=1) + "\n")


def measure_all(models: Sequence[Path], work: Path, out: Path = card.MEASUREMENTS) -> None:
    """Measure some GGUF files on the held-out packages, and write `out`."""
    found = Measurements(out)
    files = corpus.read_split(work, "test")
    found.keep("bits_per_byte", "xz", "held-out", measure.xz_bits_per_byte, files)
    for model in models:
        llm, of = LLM(model), digest(model)
        name = llm.facts.type_name
        if model == models[0]:
            found.keep("shipped", "type", of, str, name)
            found.keep("shipped", "everyday", of, measure.everyday, llm)
            found.keep("shipped", "verbatim", of, verbatim.measure_copies, llm, work)
        found.keep("bytes", name, of, os.path.getsize, model)
        found.keep("functions", name, of, measure.complete_functions, llm, files)
        found.keep("lines", name, of, measure.fill_lines, llm, files)
        found.keep("bits_per_byte", name, of, measure.bits_per_byte, llm, files)


def digest(model: Path) -> str:
    """SHA-256 of all tensors of a model; what else its file says changes no figure."""
    found = hashlib.sha256()
    for name, tensor in sorted(formats.read(model).tensors.items()):
        found.update(f"{name} {tensor.type.name} {tensor.shape}\n".encode())
        found.update(tensor.data.tobytes())
    return found.hexdigest()


def keep_log(path: Path, out: Path = card.MEASUREMENTS) -> None:
    """Keep what the card says of training; without a log, what is known of it stays."""
    if path.exists():
        log = path.read_text()
        of = hashlib.sha256(log.encode()).hexdigest()
        Measurements(out).keep("logs", "trained", of, _lines, log)


def _lines(log: str) -> list[Any]:
    return [json.loads(line) for line in log.splitlines()]


def report(models: Sequence[Path], work: Path) -> None:
    """Measure what a run has left, and write the card."""
    keep_log(work / "trained.jsonl")
    measure_all(models, work)
    card.write()


def main() -> int:
    """Measure the models of the command line and write the card."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files, the shipped one first")
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    args = parser.parse_args()
    report(args.models, args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
