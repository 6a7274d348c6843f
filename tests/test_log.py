"""The log of experiments: short pages of one form, all in the index; figures as data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INDEX = (ROOT / "docs" / "log.md").read_text()
PAGES = sorted((ROOT / "docs" / "log").glob("*.md"))
FIGURES = sorted((ROOT / "bench" / "results").glob("*.jsonl"))
FIELDS = ["Question", "Change", "Result", "Decision"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_a_question_a_change_a_result_and_a_decision(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == FIELDS
    assert text.count("\n") <= 25
    assert re.match(r"# .+\n\n\d{4}-\d\d-\d\d, ", text)


def test_the_index_has_every_page_and_no_other() -> None:
    linked = re.findall(r"\(log/([^)]+\.md)\)", INDEX)
    assert sorted(linked) == [page.name for page in PAGES]
    assert INDEX.count("\n") <= 80


def test_figures_are_lines_of_json_that_a_page_links() -> None:
    linked = set()
    for page in PAGES:
        linked |= set(re.findall(r"\(\.\./\.\./bench/results/([^)]+)\)", page.read_text()))
    assert linked == {path.name for path in FIGURES}
    for path in FIGURES:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows
        assert all(type(row) is dict for row in rows), path


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    return [target for target in found if "://" not in target]


def test_links_between_pages_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > len(PAGES)
    for page in pages:
        for target in links(page):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
