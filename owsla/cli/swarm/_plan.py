"""What a swarm is to do: typed once by a person, checked, split over processes, and handed to each as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

MODES: Final = ("echo", "flood", "hold", "storm")

SPARE_FILES: Final = 64
"""Open files of a process that are no connections: its streams, epoll, Python's own, certificates while they are read."""

BEFORE_ANSWERED: Final = 64
"""Unanswered lines of a connection at most, at a given rate: far more than wait where all is well."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Rates are over all connections, and a second; times are seconds."""

    mode: str
    host: str
    port: int
    connections: int
    """In a storm: at most so many in all, and 0 for no limit."""
    connect_rate: float
    """0: as fast as it goes."""
    connecting: int
    """Connections that may be under way at once."""
    connect_timeout: float
    rate: float
    """0: as fast as it goes."""
    in_flight: int
    """Lines that a connection may have unanswered (or unacknowledged); 0 for no limit."""
    seconds: float
    grace: float
    line: str
    size: int
    device_ack: str | None
    ca: str | None
    insecure: bool
    server_name: str
    cert: str | None
    key: str | None
    resume: bool
    sources: tuple[str, ...]
    processes: int
    wait: bool = False
    """Whether the lines wait for a word of whoever started it."""
    tick: float = 0.0
    """Seconds; lines that are due within one are said together at its end. 0: each when it is due."""
    first: int = 0
    """The number of the first device."""

    def shares(self) -> Iterator[Plan]:
        """What each process does: equal parts, the rates in proportion to the connections."""
        total = self.connections
        for index in range(self.processes):
            first = total * index // self.processes
            count = total * (index + 1) // self.processes - first
            share = count / total if total else 1 / self.processes
            yield replace(
                self,
                connections=count,
                connect_rate=self.connect_rate * share,
                connecting=max(1, self.connecting // self.processes),
                rate=self.rate * share,
                first=first,
            )

    def files(self) -> int:
        """Connections that the busiest of the processes has at once."""
        if self.mode == "storm":
            return -(-self.connecting // self.processes)
        return -(-self.connections // self.processes)

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Plan:
        given = json.loads(text)
        return cls(**{**given, "sources": tuple(given["sources"])})
