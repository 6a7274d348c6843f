"""A model keeps its license: from the card of its directory to the last file made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.command import Run
from tests.helpers.hf import write_hf
from tests.helpers.tiny import TinyModel

CARD = """---
language:
- code
license: bigcode-openrail-m
license_name: "Open RAIL-M"
license_link: 'https://example.org/license'   # a comment
description: Writes code; see its card.
model-index:
- name: x
  license: none of the model's
---

# A model

license: not this line
"""


def facts(run: Run, path: Path) -> dict[str, str | None]:
    result = run("inspect", str(path), "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    return {k: found[k] for k in ("license", "license_name", "license_link", "description")}


def with_card(folder: Path, card: str | bytes) -> Path:
    (folder / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    return folder


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_license_of_a_directory_goes_through_every_file_made_of_it(
    run: Run, tmp_path: Path, tiny: TinyModel, ends: str
) -> None:
    folder = with_card(write_hf(tmp_path / "model", tiny), CARD.replace("\n", ends))
    expected = {
        "license": "bigcode-openrail-m",
        "license_name": "Open RAIL-M",
        "license_link": "https://example.org/license",
        "description": "Writes code; see its card.",
    }
    assert facts(run, folder) == expected
    whole, small = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    assert run("convert", str(folder), str(whole)).code == 0
    assert run("quantize", str(whole), str(small), "q8_0").code == 0
    assert facts(run, whole) == facts(run, small) == expected
    assert "license        bigcode-openrail-m" in run("inspect", str(small)).out.splitlines()


@pytest.mark.parametrize(
    "card", ["license:\n\n  - mit\n  - apache-2.0", "license: [mit, apache-2.0]"]
)
def test_several_licenses_are_named_together(
    run: Run, tmp_path: Path, tiny: TinyModel, card: str
) -> None:
    card = f"\ufeff---\n# ours\n{card}\n---\n"
    assert facts(run, with_card(write_hf(tmp_path / "x", tiny), card))["license"] == (
        "mit, apache-2.0"
    )


@pytest.mark.parametrize(
    "card",
    [
        "",
        "no front matter\nlicense: mit\n",
        "---\nlicense: mit\n",
        "---\nlicense: |\n  many\n  lines\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\nlicense: null\n---\n",
        "---\nlicense: [mit, {a: b}]\n---\n",
        "---\n- mit\n---\n",
        "---\nlicense: &a [*a]\n---\n",
        "---\nlicense: " + "[" * 30_000 + "\n---\n",
        "---\nlicense: 2026-99-99\n---\n",
        "---\nlicense: mit: x\n---\n",
        "---\nlicense: \x1b[31mred\n---\n",
        f"---\nlicense: {'m' * 2000}\n---\n",
        b"---\nlicense: \xff\xfe\x00\n---\n",
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n",
    ],
)
def test_a_card_that_says_it_otherwise_keeps_no_model_from_being_read(
    run: Run, tmp_path: Path, tiny: TinyModel, card: str | bytes
) -> None:
    folder = with_card(write_hf(tmp_path / "x", tiny), card)
    found = facts(run, folder)["license"]
    assert found is None or found.isprintable()
    assert "license" not in run("inspect", str(write_hf(tmp_path / "y", tiny))).out


def test_a_folder_in_the_place_of_a_card_is_no_card(
    run: Run, tmp_path: Path, tiny: TinyModel
) -> None:
    folder = write_hf(tmp_path / "x", tiny)
    (folder / "README.md").mkdir()
    assert facts(run, folder)["license"] is None
