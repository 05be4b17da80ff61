"""The sample of the lines that begin a trace (--trace-lines)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Final

from ..trace_context import NewTraces
from .packing import LinePacker, Template

_MOST: Final = 2**62
"""Limit of the distance of two such lines. A rate that needs more means never."""


class TraceSample:
    """Random choice of the lines that begin a trace: one in 1 / `rate` on average.

    Each line is chosen with the same probability, whatever became of the others. A device that sends in a fixed rhythm is
    neither always chosen nor never. The number of lines from one choice to the next has a geometric distribution then, so that
    it takes one random number for each choice and not for each line.
    """

    __slots__ = ("_left", "_new", "_random", "lines", "rate")

    def __init__(
        self,
        rate: float = 0.0,
        *,
        new: Callable[[], str] | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        """`new()` returns the traceparent of a new trace; `uniform()` a random number from 0 to less than 1."""
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

    def choose(self) -> str | None:
        """Return the traceparent of the next line if it begins a trace, or else `None`. `begun` follows when it is packed."""
        self._left -= 1
        return self._new() if self._left <= 0 else None

    def begun(self) -> None:
        """Note that the chosen line was packed."""
        self._left = self._distance()
        self.lines += 1


class LineTraces(TraceSample):
    """A `LinePacker` that gives the chosen lines a new traceparent."""

    __slots__ = ("_pack", "_pack_traced")

    def __init__(self, packer: LinePacker, rate: float = 0.0, **sample: Any) -> None:
        """Take the arguments of `TraceSample`."""
        self._pack, self._pack_traced = packer.pack, packer.pack_traced
        super().__init__(rate, **sample)

    def pack(self, template: Template, seq: int, line: bytes, second: int) -> bytes:
        """Return the frames that publish a line, as `LinePacker.pack` does, perhaps with a new traceparent."""
        traceparent = self.choose()
        if traceparent is None:
            return self._pack(template, seq, line, second)
        packed = self._pack_traced(template, seq, line, second, traceparent)
        self.begun()
        return packed
