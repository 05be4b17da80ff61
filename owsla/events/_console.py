"""Events as lines in the log, for people."""

from __future__ import annotations

from twisted.logger import Logger

from ..boundaries import Clock, DelayedCall
from ._manager import Fail
from ._types import Event

BURST = 20
"""How many events of a kind are logged in a second; the rest of them are counted. A stampede of devices makes thousands."""


class Console:
    """Logs each event as a line, and what comes by the hundred as a number."""

    def __init__(self, clock: Clock, burst: int = BURST) -> None:
        self._log = Logger(namespace="owsla")
        self._clock = clock
        self._burst = burst
        self._seen: dict[type[Event], int] = {}
        self._call: DelayedCall | None = None

    def start(self, fail: Fail) -> None:
        """Nothing to prepare."""

    def stop(self) -> None:
        """Say what was only counted so far."""
        if self._call is not None:
            self._call.cancel()
            self._summarise()

    def handle(self, event: Event) -> None:
        kind = type(event)
        if self._call is None:
            self._call = self._clock.callLater(1.0, self._summarise)
        count = self._seen.get(kind, 0) + 1
        self._seen[kind] = count
        if count > self._burst:
            return
        if event.warning:
            self._log.warn("{event}", event=event)
        else:
            self._log.info("{event}", event=event)

    def _summarise(self) -> None:
        self._call = None
        for kind, count in self._seen.items():
            if count > self._burst:
                self._log.info("… and {more} more: {name}", more=count - self._burst, name=kind.name)
        self._seen = {}
