"""The roofline that `bench/` draws of what `starcoder bench --json` prints."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import roofline

LIMITS = {"read_gbps": 20.0, "int8_gmacs": 300.0, "bf16_gmacs": 150.0, "f32_gmacs": 80.0}


def result(name: str, speed: float = 1.0) -> dict[str, Any]:
    prompt = {"prompt_tps": 170 * speed, "prompt_gmacs": 170 * speed, "prompt_gbps": 0.3 * speed}
    decode = {"decode_tps": 16 * speed, "decode_gmacs": 15 * speed, "decode_gbps": 12.5 * speed}
    shares = {"prompt_limit_share": 0.5, "decode_limit_share": 0.6}
    return {"type": name} | prompt | decode | shares | LIMITS


def answer(*names: str) -> dict[str, Any]:
    results = [result(name, 1 / (i + 1)) for i, name in enumerate(names)]
    how = {"model": "a <model> & more", "threads": 2, "isa": "avx512", "depth": 0, "batch": 1}
    return results[0] | how | ({"results": results} if len(results) > 1 else {})


def texts_and_points(svg: str) -> tuple[list[str], int]:
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    points = [c for c in root.iter(f"{space}circle") if c.get("class") == "point"]
    return ["".join(t.itertext()) for t in root.iter(f"{space}text")], len(points)


def test_the_plot_has_two_points_a_type_and_names_everything() -> None:
    texts, n_points = texts_and_points(roofline.draw(answer("q4_0", "q8_0", "f16")))
    assert n_points == 6
    assert "a <model> & more, 2 threads (avx512)" in texts
    for words in ("q4_0 prompt", "q8_0 decode", "f16 prompt", "int8 300", "bf16 150", "read: 20"):
        assert any(words in text for text in texts), words


def test_labels_of_a_crowded_plot_do_not_overlap_and_stay_on_the_page() -> None:
    heights = [100.0, 100.0, 101.0, 103.0, 480.0, 490.0, 500.0, 502.0]
    placed = roofline._spread(heights)
    assert all(b - a >= roofline._LINE for a, b in pairwise(placed))
    assert placed[-1] <= roofline._HEIGHT - roofline._BOTTOM


@pytest.mark.parametrize("types", ["q4_0", "q4_0,q6_k"])
def test_what_the_command_prints_is_drawn(tmp_path: Path, types: str) -> None:
    plot, root = tmp_path / "roof.svg", Path(__file__).parent.parent
    text = json.dumps(answer(*types.split(",")))
    command = [sys.executable, "-m", "bench.roofline", str(plot)]
    subprocess.run(command, input=text, text=True, check=True, cwd=root)
    assert texts_and_points(plot.read_text())[1] == 2 * len(types.split(","))
