"""The event handler `console`: events as lines in the log."""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger, LogLevel

from ..interfaces import Clock, DelayedCall
from ..log import FIELDS
from ._manager import Fail
from ._types import Event

BURST = 20
"""Events of a kind that are logged per second; further ones are only counted. A stampede of devices makes thousands."""


class Console:
    """Handler that logs each event, with a limit per kind and second."""

    def __init__(self, clock: Clock, own: Callable[[], str], burst: int = BURST) -> None:
        """`own()` is the node whose name is omitted in the lines."""
        self._log = Logger(namespace="owsla")
        self._clock = clock
        self._own = own
        self._burst = burst
        self._seen: dict[str, int] = {}
        self._call: DelayedCall | None = None

    def start(self, fail: Fail) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Log the number of events that were only counted."""
        if self._call is not None:
            self._call.cancel()
            self._summarise()

    def counts(self, event: Event) -> bool:
        """Count an event, and return `True`, if it is one of those that are only counted."""
        count = self._seen.get(event.name, 0)
        if count < self._burst:
            return False
        self._seen[event.name] = count + 1
        return True

    def handle(self, event: Event, node: str, when: float) -> None:
        name = event.name
        if self._call is None:
            self._call = self._clock.callLater(1.0, self._summarise)
        count = self._seen.get(name, 0) + 1
        self._seen[name] = count
        if count > self._burst:
            return
        level = LogLevel.warn if event.warning else LogLevel.info
        text = "{event}" if node == self._own() else "Node {node}: {event}"
        fields = {"event": name, "node": node, "fields": event.fields()}
        self._log.emit(level, text, event=event, node=node, **{FIELDS: fields})

    def _summarise(self) -> None:
        self._call = None
        for name, count in self._seen.items():
            if count > self._burst:
                more = count - self._burst
                self._log.info("... and {more} more: {name}", more=more, name=name, **{FIELDS: {"event": name, "more": more}})
        self._seen = {}
