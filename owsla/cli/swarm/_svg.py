"""A histogram as an SVG image of some kilobytes, for light and dark backgrounds."""

from __future__ import annotations

import math
from html import escape
from typing import Final

from ._histogram import LatencyHistogram

WIDTH: Final = 760
HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 28, 44, 44
BARS: Final = 96
"""Number of columns: as many as fit at a width of 7 pixels each."""

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


def draw(histogram: LatencyHistogram, title: str, percents: tuple[float, ...]) -> str:
    """Return an SVG image of a histogram, with marks at percentiles. Both axes are logarithmic, so that rare values show."""
    found = list(histogram.buckets())
    low = math.log10(max(1, found[0][0])) if found else 0.0
    high = max(math.log10(max(2, histogram.largest)), low + 0.5)
    counts = [0.0] * BARS
    for first, after, amount in found:
        # A bucket can be wider or narrower than a column. The middle of the bucket decides.
        at = math.log10(max(1.0, (first + min(after, histogram.largest + 1)) / 2))
        counts[min(BARS - 1, max(0, int((at - low) / (high - low) * BARS)))] += amount
    most = max(counts) or 1.0
    wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    floor = HEIGHT - _BOTTOM

    def x(microseconds: float) -> float:
        return _LEFT + (math.log10(max(1.0, microseconds)) - low) / (high - low) * wide

    def y(count: float) -> float:
        # The offset keeps a count of 1 visible above the floor.
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
    labelled = -1000.0
    for percent in percents:
        value_at = histogram.percentile(percent)
        if value_at is not None:
            at = x(value_at)
            parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP - 6}" y2="{floor}"/>')
            if at - labelled > 36:  # or the label would cover the one to its left
                parts.append(f'<text x="{at:.1f}" y="{_TOP - 10}" text-anchor="middle">p{percent:g}</text>')
                labelled = at
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
