"""Plots of the figures as SVG: bars and percentiles, with the minimum and the maximum of the runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 860
LEFT = 210
RIGHT = 110
ROW = 26

STYLE = """\
<style>
  text { font: 12px system-ui, sans-serif; fill: #222 }
  .title { font-size: 15px; font-weight: 600 } .head { font-weight: 600 } .small { font-size: 11px; fill: #555 }
  .axis { stroke: #888 } .grid { stroke: #e2e2e2 } .spread { stroke: #222; stroke-width: 1.4 } .link { stroke-width: 3 }
  .ours { fill: #2f6db5; stroke: #2f6db5 } .beside { fill: #c77d22; stroke: #c77d22 }
  .ceiling { fill: #9aa0a6; stroke: #9aa0a6 }
  .back { fill: #fff }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .small { fill: #aaa } .axis { stroke: #777 } .grid { stroke: #333 } .spread { stroke: #eee }
    .back { fill: #16191d }
  }
</style>"""


@dataclass(frozen=True)
class Bar:
    """Value of a system."""

    name: str
    value: float
    minimum: float
    maximum: float
    kind: str


@dataclass(frozen=True)
class Panel:
    """Values of all systems for one figure."""

    title: str
    bars: Sequence[Bar]
    shown: Callable[[float], str]


@dataclass(frozen=True)
class Spread:
    """Percentiles of a system: each with its name, median, minimum and maximum."""

    name: str
    points: Sequence[tuple[str, float, float, float]]
    kind: str


def draw_bars(title: str, panels: Sequence[Panel]) -> str:
    """Draw panels of bars, each with its own axis from 0; negative values are drawn as 0. Empty without panels."""
    if not panels:
        return ""
    parts = []
    top = 56
    for panel in panels:
        maximum = max(0.0, *(bar.maximum for bar in panel.bars)) or 1.0
        step = nice(maximum / 5)
        end = math.ceil(maximum / step) * step
        bottom = top + 12 + ROW * len(panel.bars)

        def x(value: float, end: float = end) -> float:
            return LEFT + max(0.0, value) / end * (WIDTH - LEFT - RIGHT)

        parts.append(text(LEFT, top + 2, panel.title, "head"))
        for number in range(round(end / step) + 1):
            at = x(number * step)
            parts.append(line(at, top + 10, at, bottom, "grid" if number else "axis"))
            parts.append(text(at, bottom + 14, f"{number * step:,.6g}", "small", "middle"))
        for number, bar in enumerate(panel.bars):
            y = top + 12 + ROW * number
            parts.append(text(LEFT - 8, y + ROW / 2 + 4, bar.name, anchor="end"))
            width = x(bar.value) - LEFT
            parts.append(f'<rect class="{bar.kind}" x="{LEFT}" y="{y + 4}" width="{width:.1f}" height="{ROW - 9}"/>')
            parts += whisker(x(bar.minimum), x(bar.maximum), y + ROW / 2 - 0.5)
            parts.append(text(x(max(bar.maximum, bar.value)) + 8, y + ROW / 2 + 4, panel.shown(bar.value)))
        top = bottom + 44
    return document(title, top - 20, parts)


def draw_spreads(title: str, unit: str, groups: Sequence[tuple[str, Sequence[Spread]]]) -> str:
    """Draw the percentiles of all systems on one logarithmic axis. Empty without groups."""
    if not groups:
        return ""
    every = [value for _, rows in groups for row in rows for _, *values in row.points for value in values]
    low, high = math.log10(min(every)) - 0.25, math.log10(max(every)) + 0.15
    if high - low < 1:
        low, high = (low + high) / 2 - 0.5, (low + high) / 2 + 0.5

    def x(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    top = 48
    bottom = top + sum(28 + (ROW + 8) * len(rows) for _, rows in groups)
    parts = []
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in range(1, 10):
            value = step * 10.0**power
            if low <= math.log10(value) <= high:
                parts.append(line(x(value), top, x(value), bottom, "grid"))
                if step in (1, 2, 5):
                    parts.append(line(x(value), bottom, x(value), bottom + 4, "axis"))
                    parts.append(text(x(value), bottom + 17, f"{value:g}", "small", "middle"))
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 34, f"{unit}, logarithmic", anchor="middle"))
    y = top
    for head, rows in groups:
        parts.append(text(LEFT, y + 16, head, "head"))
        y += 28
        for row in rows:
            at = y + 20
            parts.append(text(LEFT - 8, at + 4, row.name, anchor="end"))
            first, last = row.points[0][1], row.points[-1][1]
            parts.append(line(x(first), at, x(last), at, f"link {row.kind}"))
            for name, value, minimum, maximum in row.points:
                parts += whisker(x(minimum), x(maximum), at)
                parts.append(f'<circle class="{row.kind}" cx="{x(value):.1f}" cy="{at}" r="5"/>')
                # The labels of values that are close to each other must not meet.
                anchor = "end" if value == first else "start"
                parts.append(text(x(value) + (4 if anchor == "end" else -2), at - 9, f"{name} {value:.3g}", "small", anchor))
            y += ROW + 8
    return document(f"{title}: p50 and p99, medians, with minimum and maximum of the runs", bottom + 50, parts)


def document(title: str, height: float, parts: Iterable[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<title>{escape(title)}</title>", STYLE]
    head += [f'<rect class="back" width="{WIDTH}" height="{height:.0f}"/>', text(16, 22, title, "title")]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def whisker(minimum: float, maximum: float, y: float) -> list[str]:
    """Draw the range from minimum to maximum."""
    ends = [line(at, y - 4, at, y + 4, "spread") for at in (minimum, maximum)]
    return [line(minimum, y, maximum, y, "spread"), *ends] if maximum - minimum > 0.5 else []


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def nice(value: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)
