"""The counts and times of one process, which the parent adds up."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from ._answers import AnswerCounts
from ._histogram import LatencyHistogram

HISTOGRAMS: Final = ("connect_times", "latency", "service", "lateness")
"""Names of the histograms in a report."""


class Counts:
    """Counts of connections and lines so far."""

    __slots__ = (
        "acked",
        "answers",
        "bytes",
        "dropped",
        "failed",
        "held",
        "lost",
        "reasons",
        "resumed",
        "said",
        "up",
        "written",
    )

    def __init__(self) -> None:
        self.up = 0
        """Number of connections whose handshake was completed."""
        self.resumed = 0
        """Number of connections that resumed a TLS session."""
        self.failed = 0
        """Number of connections that were never up."""
        self.dropped = 0
        """Number of connections that were up and that the swarm did not close."""
        self.reasons: Counter[str] = Counter()
        """Number of connections that failed or were dropped, by reason."""
        self.said = 0
        """Number of lines sent."""
        self.written = 0
        """Number of lines that the kernel has taken completely."""
        self.bytes = 0
        """Bytes of lines that the kernel has taken, with delimiters, inside TLS."""
        self.acked = 0
        """Number of lines that the gateway has acknowledged."""
        self.held = 0
        """Number of lines sent late because every connection waited for answers or had a full socket."""
        self.lost = 0
        """Number of lines without an answer at the end, of their connection or of the grace time."""
        self.answers = AnswerCounts()

    def dump(self) -> dict[str, Any]:
        """Return the counts as a dictionary for JSON."""
        answers = self.answers
        return {
            **{name: getattr(self, name) for name in self.__slots__ if name not in ("answers", "reasons")},
            **{name: getattr(answers, name) for name in answers.__slots__},
            "reasons": dict(self.reasons),
        }


class Measurements:
    """Counts and histograms of one process."""

    def __init__(self, *, scheduled: bool) -> None:
        """Start at zero. `scheduled`: lines have a rate, and so a time at which they are due."""
        self.counts = Counts()
        self.connect_times = LatencyHistogram()
        """Times from the start of a connection to the end of its handshake."""
        self.latency = LatencyHistogram()
        """Times from when a line was due to its answer."""
        # Without a schedule a line is due when it is written.
        self.service = LatencyHistogram() if scheduled else self.latency
        """Times from when a line was written to its answer."""
        self.lateness = LatencyHistogram()
        """Times from when a line was due until it was written, for lines that only this process delayed."""

    def dump(self) -> dict[str, Any]:
        """Return everything as a dictionary for JSON."""
        return {**self.counts.dump(), **{name: getattr(self, name).dump() for name in HISTOGRAMS}}
