"""A worker: a node in a process of its own, with a parent.

    python -m owsla.workers worker-2

It is started by a parent only, which gives it two sockets: the device port, and the one end of the channel between them. Its
settings are read here, from the arguments that the parent was given (they come through the channel: there may be a password in
them), the environment and the file: after a change a fresh worker has the new ones.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, Logger, LogLevel
from zope.interface import implementer

from ..config.addresses import BrokerAddress
from ..events import Event, EventsDropped, HandlerStats, to_wire
from ..http import Readings, answer
from ..log import with_traceback
from ..tls.expiry import Shown
from ._channel import Channel
from ._loads import Share

CHANNEL_FD: Final = 3
PORT_FD: Final = 4
LOADS_FD: Final = 5

ORPHAN_TIMEOUT: Final = 5.0
"""Seconds for a worker to stop whose parent is gone. Whatever runs Owsla starts a new parent at once, and wants the machine."""


class Stoppable(Protocol):
    """The gateway, as its parent sees it."""

    def hurry(self) -> None:
        """Wait for nothing more."""

    def shorten(self, drain_timeout: float) -> None:
        """Stop within this time, in seconds, if a stop would take longer."""


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a worker has from its parent."""

    link: ParentLink
    port: socket.socket
    """Bound to the device port, and shared with the other workers."""
    broker: BrokerAddress | None
    """The parent's embedded broker, if there is one."""
    share: Share
    """How many connections it has among the others."""


class ParentLink:
    """A worker's end of the channel: what it tells its parent, and what it does when told."""

    def __init__(self, reactor: Any, number: int) -> None:
        """`number` is the worker's."""
        self._reactor = reactor
        self._log = Logger(namespace="owsla")
        self.number = number
        self.channel = Channel(reactor, self._received, self._parent_gone)
        self._readings: Readings | None = None
        self._stoppable: Stoppable | None = None
        self._reopen: Callable[[], None] = lambda: None
        self._gone: Callable[[str, bool], None] = lambda node, served: None
        self._ready = False
        self._stopping = False

    def introduce(
        self, readings: Readings, service: Stoppable, *, reopen: Callable[[], None], gone: Callable[[str, bool], None]
    ) -> None:
        """Who it is about. `gone` is told the name of a node whose process is dead, and whether its port had been open."""
        self._readings = readings
        self._stoppable = service
        self._reopen = reopen
        self._gone = gone

    # -- towards the parent ------------------------------------------------------------------------------------------------

    def node(self, node: str) -> None:
        """This is the node's name, from now on."""
        self.channel.send("node", node=node)

    def ready(self, drain_timeout: float, shown: Shown) -> None:
        """The port is open. A stop may take as long as `drain_timeout`, and devices are shown this certificate: the parent may
        have been started with other settings.
        """
        if not self._ready:
            self._ready = True
            self.channel.send(
                "ready", drain_timeout=drain_timeout, certificate=shown.certificate, not_after=shown.not_after
            )

    # -- from the parent ---------------------------------------------------------------------------------------------------

    def _received(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "ask":
            value = answer(self._readings, message["what"]) if self._readings is not None else None
            self.channel.send("answer", id=message["id"], value=value)
        elif kind == "ping":
            self.channel.send("pong")
        elif kind == "stop":
            self.stop("told to stop")
        elif kind == "hurry":
            if self._stoppable is not None:
                self._stoppable.hurry()
        elif kind == "reopen":
            self._reopen()
        elif kind == "gone":
            self._gone(message["node"], message.get("served", True))

    def stop(self, why: str) -> None:
        """Stop in order, once."""
        if not self._stopping:
            self._stopping = True
            self._log.info("Stopping: {why}", why=why)
            try:
                self._reactor.stop()
            except ReactorNotRunning:
                pass  # it is on its way already: something failed

    def _parent_gone(self) -> None:
        if self._stopping or self._stoppable is None:
            return
        self._stoppable.shorten(ORPHAN_TIMEOUT)
        self.stop("the parent is gone")


class EventsToParent:
    """An event handler that passes them on to the parent, which writes them to files and databases."""

    def __init__(self, link: ParentLink, stats: HandlerStats) -> None:
        """`stats` counts what the parent was too slow for."""
        self._channel = link.channel
        self._stats = stats
        self._untold = 0

    def handle(self, event: Event, node: str, when: float) -> None:
        if self._untold and self._offer(EventsDropped(self._stats.name, self._untold), node, when):
            self._untold = 0
        if not self._offer(event, node, when):
            self._untold += 1
            self._stats.dropped += 1

    def _offer(self, event: Event, node: str, when: float) -> bool:
        return self._channel.offer("event", time=when, node=node, event=to_wire(event))


@implementer(ILogObserver)
class LogToParent:
    """A log observer that passes lines on to the parent, which has the log."""

    def __init__(self, channel: Channel, in_reactor: Callable[..., Any]) -> None:
        """To be made in the reactor's thread. `in_reactor(f, …)` calls `f` there (`callFromThread`): any thread may log."""
        self._channel = channel
        self._in_reactor = in_reactor
        self._thread = threading.get_ident()
        self._untold = 0
        self.lost = 0
        """Lines lost so far."""

    def __call__(self, event: Any) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.info:
            return
        line = level.name, str(event.get("log_namespace", "-")), with_traceback(event)
        if threading.get_ident() == self._thread:
            self._tell(*line)
        else:
            self._in_reactor(self._tell, *line)

    def _tell(self, level: str, namespace: str, text: str) -> None:
        if self._untold and self._channel.offer(
            "log", level="warn", namespace="owsla", text=f"The log has lost {self._untold} lines here: the parent is too slow"
        ):
            self._untold = 0
        if not self._channel.offer("log", level=level, namespace=namespace, text=text):
            self._untold += 1
            self.lost += 1
