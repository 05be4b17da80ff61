"""Tests of the lines that begin a trace: how many, which, and that they are otherwise as before."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.line_traces import LineTraces
from owsla.broker.packing import LinePacker, LineTooLarge, Template

ID = b"0123abcd-0000-8000-8000-000000000001"


def traceparent(number: int) -> str:
    """Return a valid traceparent."""
    return f"00-{number:032x}-{number:016x}-01"


class Lab:
    """Packer, and the lines that it packs. `chosen` has the numbers of those with a trace."""

    def __init__(self, rate: float, seed: int = 1, uniform: Any = None) -> None:
        self.packer = LinePacker(
            channel=1,
            exchange="",
            routing_key="from_device",
            seq_header="from_device_seq",
            delivery_mode=2,
            reply_to=b"to_device.0123abcd",
            frame_max=4096,
        )
        self.template = self.packer.template(ID, None)
        self.made = 0
        self.traces = LineTraces(self.packer, rate, new=self.new, uniform=uniform or random.Random(seed).random)

    def new(self) -> str:
        self.made += 1
        return traceparent(self.made)

    def chosen(self, lines: int) -> list[int]:
        found = []
        for seq in range(lines):
            packed = self.traces.pack(self.template, seq, b"x", 5)
            if packed != self.packer.pack(self.template, seq, b"x", 5):
                found.append(seq)
        return found


class SampleTests(SynchronousTestCase):
    def test_none(self) -> None:
        """At a rate of 0 no line is chosen, and no random number drawn."""
        lab = Lab(0.0, uniform=lambda: self.fail("nothing is to be chosen"))
        self.assertEqual((lab.chosen(1000), lab.traces.lines), ([], 0))

    def test_all(self) -> None:
        """At a rate of 1 each line is chosen."""
        lab = Lab(1.0)
        self.assertEqual((lab.chosen(100), lab.traces.lines), (list(range(100)), 100))

    def test_share(self) -> None:
        """On average one line in 1 / rate is chosen: within four standard deviations."""
        for rate in (0.5, 0.1, 0.01):
            lab = Lab(rate)
            count = len(lab.chosen(40_000))
            expected, deviation = 40_000 * rate, (40_000 * rate * (1 - rate)) ** 0.5
            self.assertLess(abs(count - expected), 4 * deviation)
            self.assertEqual(lab.traces.lines, count)

    def test_independent(self) -> None:
        """Whether a line is chosen does not depend on its place: of a period of 10 lines, each place has its share. A device
        whose lines always have the same place is neither always chosen nor never.
        """
        chosen = Lab(0.1).chosen(40_000)
        places = Counter(seq % 10 for seq in chosen)
        for place in range(10):
            self.assertLess(abs(places[place] - 400), 4 * 19)
        neighbours = sum(after == before + 1 for before, after in pairwise(chosen))
        self.assertLess(abs(neighbours - len(chosen) / 10), 4 * 19)

    def test_extremes(self) -> None:
        """The smallest rates, and the ends of the range of random numbers, cause no error."""
        for uniform in (0.0, 1 - 2**-53):
            for rate in (5e-324, 1e-300, 1e-12, 0.5, 1 - 2**-53):
                lab = Lab(rate, uniform=lambda value=uniform: value)
                self.assertEqual(bool(lab.chosen(3)), uniform == 0.0 or rate > 0.9)

    def test_other_rate(self) -> None:
        """Another rate applies to the next line."""
        lab = Lab(1e-9)
        self.assertEqual(lab.chosen(10), [])
        lab.traces.configure(1.0)
        self.assertEqual(lab.chosen(2), [0, 1])
        lab.traces.configure(0.0)
        self.assertEqual((lab.chosen(10), lab.traces.lines), ([], 2))


class TemplateTests(SynchronousTestCase):
    def test_last_trace(self) -> None:
        """The template of a connection has the last traceparent of its lines."""
        lab = Lab(1.0)
        self.assertIsNone(lab.template.traceparent)
        lab.chosen(3)
        self.assertEqual(lab.template.traceparent, traceparent(3))
        other: Template = lab.packer.template(ID, "other")
        self.assertIsNone(other.traceparent)

    def test_too_large(self) -> None:
        """A line above the size limit of the broker begins no trace."""
        lab = Lab(1.0)
        lab.packer.largest(10)
        with self.assertRaises(LineTooLarge):
            lab.traces.pack(lab.template, 0, b"x" * 11, 5)
        self.assertEqual((lab.template.traceparent, lab.traces.lines), (None, 0))
