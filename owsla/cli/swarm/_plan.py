"""The plan of a swarm: made from the command line, split over processes, and passed to each as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Final

MODES: Final = ("echo", "flood", "hold", "storm")

PROXY_VERSIONS: Final = ("v1", "v2")
"""Versions of the PROXY protocol."""

SPARE_FILES: Final = 64
"""Open files of a process besides its connections: standard streams, epoll, Python, certificates while they are read."""

PROTOCOLS: Final = ("lines", "mqtt")

IN_FLIGHT_AT_A_RATE: Final = 64
"""Default limit of unanswered lines of a connection at a given rate: far more than wait while the gateway keeps up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of a run, or of the share of one process in it. Rates are per second over all connections; times are
    seconds."""

    mode: str
    host: str
    port: int
    """Port of the gateway, if there is no `unix` socket."""
    connections: int
    """Number of connections; in a storm the maximum in all, and 0 for no limit."""
    connect_rate: float
    """Connects per second; 0 for no limit."""
    connecting: int
    """Maximum number of connections in progress at once."""
    connect_timeout: float
    rate: float
    """Lines per second; 0 for no limit."""
    in_flight: int
    """Maximum number of unanswered (or unacknowledged) lines of a connection; 0 for no limit."""
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
    """Whether lines start only after Enter."""
    tick: float = 0.0
    """Interval at the end of which all lines that became due in it are sent together. 0: each line when it is due."""
    first: int = 0
    """Number of the first device."""
    unix: str | None = None
    """Path of a unix socket of the gateway."""
    plain: bool = False
    """True if devices connect without TLS."""
    framing: str = "lines"
    """Value of `--framing`: how lines are framed, in both directions."""
    delimiter: str = "\n"
    """Delimiter of lines, with a character for each byte (ISO 8859-1)."""
    proxy: str | None = None
    """Version of the PROXY protocol header before everything else: `v1`, `v2`, or `None` without one."""
    proxy_cn: str | None = None
    """Template of the common name in this header."""
    protocol: str = "lines"
    """Protocol of the devices: `lines`, in a framing, or `mqtt`."""
    burst: int = 1
    """Number of lines that a device writes together."""

    @property
    def acknowledged(self) -> bool:
        """Return whether the server acknowledges lines."""
        return self.device_ack is not None or self.protocol == "mqtt"

    @property
    def target(self) -> str:
        """Address of the gateway, for messages."""
        return f"{self.host} port {self.port}" if self.unix is None else self.unix

    def shares(self) -> Iterator[Plan]:
        """Iterate over the plans of the processes: equal parts, with rates in proportion to the connections."""
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
        """Return the maximum number of connections that one process has at once."""
        if self.mode == "storm":
            return -(-self.connecting // self.processes)
        return -(-self.connections // self.processes)

    def dump(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> Plan:
        """Make a plan from the result of `dump`."""
        given = json.loads(text)
        return cls(**{**given, "sources": tuple(given["sources"])})
