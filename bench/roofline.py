"""The roofline as an SVG file: what memory and arithmetic allow, and where each run stands.

    starcoder bench --json | python -m bench.roofline roof.svg

x: multiply-adds for a byte that is read, y: multiply-adds a second, both logarithmic. Left of the
corners memory is the limit (the slope), right of them arithmetic (the ceilings).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from html import escape
from pathlib import Path
from typing import Any

from starcoder.core.limits import Limits

_WIDTH, _HEIGHT = 860, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 222, 58, 58  # margins; labels of points stand to the right
_LINE = 17  # between two lines of text
_COLORS = ("#1b6ca8", "#c2410c", "#2f7d32", "#7b3fa0", "#a8801b", "#0f766e", "#b3266e", "#52525b")
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#27272a}.small{font-size:12px;fill:#52525b}"
    ".title{font-size:16px;font-weight:600}.grid{stroke:#e4e4e7}.roof{stroke:#27272a;fill:none;"
    "stroke-width:2}.low{stroke-dasharray:5 4;stroke-width:1.5}.lead{stroke:#a1a1aa}"
)


@dataclass(frozen=True, slots=True)
class Point:
    """One run: where it stands, and what is written beside it."""

    intensity: float  # multiply-adds for a byte
    gmacs: float
    tps: float
    share: float


@dataclass(frozen=True, slots=True)
class Row:
    """A type's prompt and decoding."""

    type_name: str
    prompt: Point
    decode: Point

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Row:
        """From the fields of docs/bench.md."""
        prompt, decode = (
            Point(
                result[f"{kind}_gmacs"] / result[f"{kind}_gbps"],
                result[f"{kind}_gmacs"],
                result[f"{kind}_tps"],
                result[f"{kind}_limit_share"],
            )
            for kind in ("prompt", "decode")
        )
        return cls(result["type"], prompt, decode)


def draw(answer: Mapping[str, Any]) -> str:
    """The drawing of one object that `starcoder bench --json` has printed.

    The roof is the highest that was measured; shares are of what each result met in its minutes.
    """
    results = answer.get("results", [answer])
    limits = reduce(Limits.larger, (_limits(result) for result in results))
    rows = [Row.of(result) for result in results]
    axes = _Axes(rows, limits)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}">',
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        _text(_LEFT - 60, 26, _title(answer), "title"),
        *_grid(axes),
        *_roof(axes, limits),
        *_points(axes, rows),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _limits(result: Mapping[str, Any]) -> Limits:
    return Limits(**{field.name: result[field.name] for field in fields(Limits)})


def _title(answer: Mapping[str, Any]) -> str:
    """The model and how it runs."""
    n = answer["threads"]
    words = [answer["model"], f"{n} thread{'s' if n > 1 else ''} ({answer['isa']})"]
    words += [f"depth {answer['depth']}"] if answer["depth"] else []
    words += [f"batch {answer['batch']}"] if answer["batch"] > 1 else []
    return ", ".join(words)


class _Axes:
    """From values to places, over whole powers of ten."""

    def __init__(self, rows: Sequence[Row], limits: Limits) -> None:
        points = [point for row in rows for point in (row.prompt, row.decode)]
        tops = limits.int8_gmacs, limits.bf16_gmacs, limits.f32_gmacs
        corners = [top / limits.read_gbps for top in tops]
        self.x = _powers([*(point.intensity for point in points), *corners])
        self.y = _powers([*(point.gmacs for point in points), *tops])

    def at_x(self, value: float) -> float:
        """Of an intensity."""
        share = (math.log10(value) - self.x[0]) / (self.x[1] - self.x[0])
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def at_y(self, value: float) -> float:
        """Of a speed."""
        share = (math.log10(value) - self.y[0]) / (self.y[1] - self.y[0])
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _powers(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten below and above all values."""
    return math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 0.05)


# ---- the parts -----------------------------------------------------------------------------------


def _grid(axes: _Axes) -> Iterator[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for power in range(axes.x[0], axes.x[1] + 1):
        x = axes.at_x(10.0**power)
        yield _line((x, _TOP), (x, bottom), "grid")
        yield _text(x, bottom + 18, f"{10.0**power:g}", "small", "middle")
    for power in range(axes.y[0], axes.y[1] + 1):
        y = axes.at_y(10.0**power)
        yield _line((_LEFT, y), (right, y), "grid")
        yield _text(_LEFT - 8, y + 4, f"{10.0**power:g}", "small", "end")
    middle = (_LEFT + right) / 2
    yield _text(middle, bottom + 40, "multiply-adds for a byte that is read", "", "middle")
    yield _text(_LEFT - 60, _TOP - 14, "10⁹ multiply-adds a second", "small")


def _roof(axes: _Axes, limits: Limits) -> Iterator[str]:
    ceilings = _ceilings(limits)
    end = 10.0 ** axes.x[1]
    top = ceilings[0][1]
    start = max(10.0 ** axes.x[0], 10.0 ** axes.y[0] / limits.read_gbps)
    slope = [(start, start * limits.read_gbps), (top / limits.read_gbps, top), (end, top)]
    places = " ".join(f"{axes.at_x(x):.1f},{axes.at_y(y):.1f}" for x, y in slope)
    yield f'<polyline class="roof" points="{places}"/>'
    for _, value in ceilings[1:]:
        corner = axes.at_x(value / limits.read_gbps), axes.at_y(value)
        yield _line(corner, (axes.at_x(end), corner[1]), "roof low")
    for names, value in _named(axes, ceilings):
        x = axes.at_x(value / limits.read_gbps)
        yield _text(x + 28, axes.at_y(value) - 6, names, "small")
    yield _along_slope(axes, limits, start)


def _ceilings(limits: Limits) -> list[tuple[str, float]]:
    """Names and values from the highest down."""
    found = {"int8": limits.int8_gmacs, "bf16": limits.bf16_gmacs, "f32": limits.f32_gmacs}
    return sorted(found.items(), key=lambda pair: -pair[1])


def _named(axes: _Axes, ceilings: Sequence[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """What to write above which ceiling: those too close for a line of text share one."""
    names, top = "", 0.0
    for name, value in ceilings:
        if names and axes.at_y(value) - axes.at_y(top) >= _LINE:
            yield names, top
            names = ""
        if not names:
            top = value
        names += f"{', ' if names else ''}{name} {value:.0f}"
    yield names, top


def _along_slope(axes: _Axes, limits: Limits, start: float) -> str:
    """The name of the slope, turned as it is, above its lower end."""
    x, y = axes.at_x(start), axes.at_y(start * limits.read_gbps)
    x2, y2 = axes.at_x(start * 10), axes.at_y(start * 10 * limits.read_gbps)
    angle = math.degrees(math.atan2(y2 - y, x2 - x))
    turn = f'transform="translate({x:.1f} {y:.1f}) rotate({angle:.1f})"'
    return f"<g {turn}>{_text(14, -8, f'read: {limits.read_gbps:.1f} GB/s', 'small')}</g>"


def _points(axes: _Axes, rows: Sequence[Row]) -> Iterator[str]:
    marks: list[tuple[float, float, str, str, str]] = []  # x, y, color, shape, label
    for i, row in enumerate(rows):
        color = _COLORS[i % len(_COLORS)]
        for point, name in ((row.prompt, "prompt"), (row.decode, "decode")):
            label = f"{row.type_name} {name}: {_figure(point.tps)} t/s, {point.share:.0%}"
            place = axes.at_x(point.intensity), axes.at_y(point.gmacs)
            marks.append((*place, color, name, label))
    marks.sort(key=lambda mark: mark[1])
    labels = _spread([mark[1] for mark in marks])
    x = _WIDTH - _RIGHT + 14
    for (at, height, color, name, label), y in zip(marks, labels, strict=True):
        bend = f"{at:.1f},{height:.1f} {x - 10},{y:.1f} {x - 2},{y:.1f}"
        yield f'<polyline class="lead" fill="none" points="{bend}"/>'
        yield _mark(at, height, color, name, "point")
        yield _mark(x + 4, y, color, name, "key")
        yield _text(x + 15, y + 4, label)


def _mark(x: float, y: float, color: str, name: str, style: str) -> str:
    """A disk for a prompt, a ring for decoding."""
    fill = color if name == "prompt" else "#fff"
    return (
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="5" '
        f'fill="{fill}" stroke="{color}" stroke-width="2"/>'
    )


def _spread(heights: Sequence[float]) -> list[float]:
    """Heights from the top down, moved as little as keeps lines of text apart and on the page."""
    placed: list[float] = []
    for y in heights:
        placed.append(max(y, placed[-1] + _LINE) if placed else y)
    over = placed[-1] - (_HEIGHT - _BOTTOM) if placed else 0.0
    if over > 0:
        placed = [y - over for y in placed]
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], max(heights[i], _TOP), placed[i + 1] - _LINE)
    return placed


# ---- SVG -----------------------------------------------------------------------------------------


def _figure(tps: float) -> str:
    return f"{tps:.0f}" if tps >= 100 else f"{tps:.3g}"


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    name = f' class="{style}"' if style else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f"<text{name} {place}>{escape(words)}</text>"


def _line(a: tuple[float, float], b: tuple[float, float], style: str) -> str:
    return (
        f'<line class="{style}" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"/>'
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: starcoder bench --json | python -m bench.roofline FILE.svg")
    Path(sys.argv[1]).write_text(draw(json.load(sys.stdin)), encoding="utf-8")
