"""The devices of the demo: their names and manners. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

TOKEN: Final = "demo"
"""Token of all devices. The gateway of a demo listens on 127.0.0.1 only."""

GUEST: Final = "my-device"
"""Device id for a person who connects as a device."""

DOOR: Final = "door-7"
PRINTER: Final = "printer-1"
TRACKER: Final = "tracker-3"
STRANGER: Final = "meter-old"
BOILER: Final = "boiler-9"

MOST: Final = 1000
"""Maximum number of devices. `owsla swarm` is for more."""

LINES: Final = 400.0
"""Lines per second of all meters together at most, which leaves a small machine idle."""


class Manner(Enum):
    """The behaviour of a device."""

    TALKS = "sends a reading twice a second"
    WAITS = "is silent until somebody sends it `open`"
    LAGS = "sends pages, and reads the answers slower than they come"
    ROAMS = "sends its position, loses its connection, and comes back"
    DISTRUSTS = "does not know the authority of the gateway, so its handshakes fail"
    MISTAKES = "logs in with an old token, and is refused"


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices of a demo."""

    count: int
    """Number of devices that can connect."""

    def devices(self) -> Iterator[tuple[str, Manner]]:
        """Yield names and manners: those of the devices that can connect first."""
        special = [(DOOR, Manner.WAITS), (PRINTER, Manner.LAGS), (TRACKER, Manner.ROAMS)][: max(0, self.count - 1)]
        for number in range(1, self.count - len(special) + 1):
            yield meter(number), Manner.TALKS
        yield from special
        yield STRANGER, Manner.DISTRUSTS
        yield BOILER, Manner.MISTAKES

    @property
    def interval(self) -> float:
        """Return the seconds between two lines of a meter."""
        return max(0.5, self.count / LINES)

    def logins(self) -> str:
        """Return the login file of the gateway."""
        known = [name for name, manner in self.devices() if manner not in (Manner.DISTRUSTS, Manner.MISTAKES)]
        return "".join(f"{name}:{TOKEN}\n" for name in [*known, GUEST])


def meter(number: int) -> str:
    """Return the name of a meter."""
    return f"meter-{number:02}"
