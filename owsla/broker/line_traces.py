"""The sample of the lines that begin a trace (--trace-lines)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

from ..trace_context import NewTraces
from .packing import LinePacker, Template

_MOST: Final = 2**62
"""Limit of the distance of two such lines. A rate that needs more means never."""


class LineTraces:
    """A `LinePacker` that gives some of the lines a new traceparent: one in 1 / `rate` on average.

    Each line is chosen with the same probability, whatever became of the others. A device that sends in a fixed rhythm is
    neither always chosen nor never. The number of lines from one choice to the next has a geometric distribution then, so that
    it takes one random number for each choice and not for each line.
    """

    __slots__ = ("_left", "_new", "_pack", "_pack_traced", "_random", "lines", "rate")

    def __init__(
        self,
        packer: LinePacker,
        rate: float = 0.0,
        *,
        new: Callable[[], str] | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`new()` returns the traceparent of a new trace; `uniform()` a random number from 0 to less than 1."""
        self._pack, self._pack_traced = packer.pack, packer.pack_traced
        self._new = new or NewTraces().make
        self._random = uniform
        self.lines = 0
        """Number of lines with a traceparent so far."""
        self.configure(rate)

    def configure(self, rate: float) -> None:
        """Set the share of the lines that are chosen; 0: none."""
        self.rate = rate
        self._left = self._distance()

    def _distance(self) -> int:
        """Return the number of lines up to the next choice, with that line."""
        if self.rate <= 0:
            return _MOST
        if self.rate >= 1:
            return 1
        return 1 + int(min(math.log(1 - self._random()) / math.log1p(-self.rate), _MOST))

    def pack(self, template: Template, seq: int, line: bytes, second: int) -> bytes:
        """Return the frames that publish a line, as `LinePacker.pack` does, perhaps with a new traceparent."""
        self._left -= 1
        if self._left > 0:
            return self._pack(template, seq, line, second)
        packed = self._pack_traced(template, seq, line, second, self._new())
        self._left = self._distance()
        self.lines += 1
        return packed
