"""Connections that are closed at once, for their address: a number of them, and the last addresses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .admission import REPORT_INTERVAL, Tally

HOSTS: Final = 500
"""Number of addresses that are remembered for each reason: 100 KB. An event of thousands of connections has one address only,
and an operator looks for that of his device."""


class RefusedHost(NamedTuple):
    """The connections from one address."""

    host: str
    connections: int
    first: float
    """Time of the first one, by the clock of the reactor."""
    last: float
    """Time of the last one."""


class RefusedHosts(Tally):
    """A counter of connections that were closed at once for one reason, and the addresses that they came from last."""

    __slots__ = ("_hosts", "_seconds", "last")

    def __init__(self, seconds: Callable[[], float], interval: float = REPORT_INTERVAL) -> None:
        """`seconds` is the clock of the reactor. `interval` is the minimum time in seconds between two reports."""
        super().__init__(interval)
        self._seconds = seconds
        self._hosts: dict[str, tuple[int, float, float]] = {}  # in the order of the last connections
        self.last = ""
        """Address of the last connection."""

    def refuse(self, host: str) -> bool:
        """Count a connection from an address, and return `False`."""
        self.count += 1
        self.last = host
        hosts, now = self._hosts, self._seconds()
        count, first, _ = hosts.pop(host, (0, now, now))
        hosts[host] = (count + 1, first, now)
        if len(hosts) > HOSTS:
            del hosts[next(iter(hosts))]
        return False

    def hosts(self) -> Iterator[RefusedHost]:
        """Yield the addresses that are remembered, the last one first."""
        for host, times in reversed(list(self._hosts.items())):
            yield RefusedHost(host, *times)
