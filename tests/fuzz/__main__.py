"""Thousands of damaged models through everything that reads them: `python -m tests.fuzz --n 2000`.

Files that show a bug are told at once and, with `--keep`, kept. `judge` says what a bug is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.bombs import bomb
from tests.fuzz.judge import Outcome, attempt
from tests.fuzz.mutants import FORMATS, mutant

KINDS = (*FORMATS, "bombs")


def campaign(name: str, seeds: range, keep: Path | None = None) -> list[Outcome]:
    """All outcomes; bugs are told at once, and their files kept."""
    outcomes = []
    for seed in seeds:
        files = bomb(seed) if name == "bombs" else mutant(name, seed)
        outcome = attempt(files)
        outcomes.append(outcome)
        if outcome.is_bug:
            print(f"{name} {seed}: {outcome}", file=sys.stderr, flush=True)
            for file, raw in files.items() if keep is not None else ():
                place = keep / f"{name}-{seed}" / file  # type: ignore[operator]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(raw)
    return outcomes


def main() -> int:
    """Run the campaign and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000, help="damaged models of each format")
    parser.add_argument("--seed", type=int, default=0, help="number of the first")
    parser.add_argument("--format", choices=KINDS, action="append", help="only this one")
    parser.add_argument("--keep", type=Path, help="folder for the files of bugs")
    options = parser.parse_args()
    n_bugs = 0
    print("format       models  works  refused  bugs   worst CPU   reading        all   models/s")
    for name in options.format or KINDS:
        start = time.perf_counter()
        outcomes = campaign(name, range(options.seed, options.seed + options.n), options.keep)
        rate = len(outcomes) / (time.perf_counter() - start)
        kinds = Counter(outcome.kind for outcome in outcomes)
        bugs = [outcome for outcome in outcomes if outcome.is_bug]
        n_bugs += len(bugs)
        worst: Any = [
            max(getattr(o, key) for o in outcomes) for key in ("seconds", "read_kib", "kib")
        ]
        row = f"{name:11} {len(outcomes):7} {kinds['works']:6} {kinds['refused']:8} {len(bugs):5}"
        row += f" {worst[0] * 1e3:8.0f} ms {worst[1] / 1024:6.1f} MiB {worst[2] / 1024:6.1f} MiB"
        print(f"{row} {rate:10.0f}", flush=True)
    return 1 if n_bugs else 0


if __name__ == "__main__":
    sys.exit(main())
