"""The tour keeps its promise: nine files that are there, in the order of the way, and short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tour.md").read_text()
# A stop is a number and a file in bold.
STOPS = re.findall(r"^\*\*(\d+)\. `([^`]+)`", PAGE, re.MULTILINE)
MOST_LINES = 1_200  # of all stops together


def test_the_tour_has_nine_stops_at_files_that_are_there() -> None:
    assert [int(number) for number, _ in STOPS] == list(range(1, 10))
    assert [name for _, name in STOPS if not (ROOT / name).is_file()] == []
    assert len({name for _, name in STOPS}) == 9


def test_the_tour_is_as_short_as_it_says() -> None:
    assert f"at most {MOST_LINES:,} lines" in PAGE
    lines = {name: len((ROOT / name).read_text().splitlines()) for _, name in STOPS}
    assert sum(lines.values()) <= MOST_LINES, lines


def test_every_file_that_the_tour_names_is_there() -> None:
    names = re.findall(r"`([\w/]+\.(?:py|cpp|h))`", PAGE.partition("## Names")[0])
    there = {
        path.name for folder in ("src", "csrc", "tests") for path in (ROOT / folder).rglob("*")
    }
    assert {name for name in names if name.rpartition("/")[2] not in there} == set()


def test_the_program_of_the_tour_prints_what_it_says() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (run.stderr, run.stdout) == ("", program.rpartition("# ")[2])
