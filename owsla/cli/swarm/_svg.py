"""A histogram as SVG, by hand: some kilobytes, readable in the dark as well."""

from __future__ import annotations

import math
from typing import Final
from xml.sax.saxutils import escape

from ._histogram import Histogram

WIDTH: Final = 760
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 44, 44
BARS: Final = 96
"""Columns: as many as there is room for at 7 pixels each."""

_STYLE = """\
<style>
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .title { font-size: 14px; font-weight: 600 }
  .bar { fill: #2f6db5 }
  .axis { stroke: #999 } .grid { stroke: #e4e4e4 } .mark { stroke: #c0392b; stroke-dasharray: 3 3 }
  .back { fill: #fff }
  @media (prefers-color-scheme: dark) {
    text { fill: #ddd } .bar { fill: #6aa5e8 } .axis { stroke: #777 } .grid { stroke: #333 } .mark { stroke: #ff8a78 }
    .back { fill: #16191d }
  }
</style>"""


def draw(histogram: Histogram, title: str, percents: tuple[float, ...]) -> str:
    """How many took how long: both axes are logarithmic, so that the few slow ones are seen."""
    found = list(histogram.buckets())
    low = math.log10(max(1, found[0][0])) if found else 0.0
    high = max(math.log10(max(2, histogram.largest)), low + 0.5)
    counts = [0.0] * BARS
    for first, after, amount in found:
        # A bucket may be wider than a column, or the reverse: its count goes to where it is by its middle.
        at = math.log10(max(1.0, (first + min(after, histogram.largest + 1)) / 2))
        counts[min(BARS - 1, max(0, int((at - low) / (high - low) * BARS)))] += amount
    most = max(counts) or 1.0
    wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    floor = HEIGHT - _BOTTOM

    def x(microseconds: float) -> float:
        return _LEFT + (math.log10(max(1.0, microseconds)) - low) / (high - low) * wide

    def y(count: float) -> float:
        # One is a little above the floor.
        return floor - tall * (math.log10(count) + 0.3) / (math.log10(most) + 0.3)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        _STYLE,
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>',
    ]
    for power in range(int(math.log10(most)) + 1):
        at = y(10**power)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for power in range(math.floor(low), math.ceil(high) + 1):
        for step in (1, 2, 5):
            value = step * 10.0**power
            if low <= math.log10(value) <= high:
                at = x(value)
                parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>')
                parts.append(f'<text x="{at:.1f}" y="{floor + 17}" text-anchor="middle">{value / 1000:g}</text>')
    parts.append(f'<text x="{_LEFT + wide / 2:.1f}" y="{HEIGHT - 8}" text-anchor="middle">milliseconds</text>')
    for number, count in enumerate(counts):
        if count:
            at = y(count)
            left = _LEFT + number * wide / BARS
            parts.append(
                f'<rect class="bar" x="{left:.1f}" y="{at:.1f}" width="{wide / BARS - 0.8:.1f}" height="{floor - at:.1f}"/>'
            )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    marks = [(f"p{percent:g}", histogram.percentile(percent)) for percent in percents]
    beside = -1000.0
    for name, reached in marks:
        if reached is not None:
            at = x(reached)
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{floor}"/>')
            if at - beside > 36:
                parts.append(f'<text x="{at:.1f}" y="{_TOP - 10}" text-anchor="middle">{name}</text>')
                beside = at
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
