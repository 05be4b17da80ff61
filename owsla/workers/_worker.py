"""A worker's side of the channel to its parent: commands of the parent; readiness, events and log of the worker."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python.failure import Failure
from zope.interface import implementer

from ..config.addresses import BrokerAddress
from ..desk import NodeDesk, UnknownQuestion
from ..events import Event, EventsDropped, HandlerStats, to_wire
from ..http import QUESTIONS, Readings, answer
from ..log import FIELDS, parts_of, with_traceback
from ..tls.expiry import ServedCertificate
from ._channel import Channel
from ._loads import WorkerLoad

CHANNEL_FD: Final = 3
LOADS_FD: Final = 4
FIRST_DOOR_FD: Final = 5
"""Descriptor of the socket of the first door. Those of the other doors follow, in the order of the `start` message."""

ORPHAN_TIMEOUT: Final = 5.0
"""Seconds for the shutdown of a worker whose parent is gone. systemd, or whatever runs Owsla, starts a new parent at once,
which needs the memory and the descriptors.
"""


class Stoppable(Protocol):
    """Node, as the channel sees it."""

    def hurry(self) -> None:
        """Stop waiting for anything."""

    def shorten(self, drain_timeout: float) -> None:
        """Limit a shutdown that begins later to this many seconds."""


class Reloadable(Protocol):
    """Reloads of the configuration of the node, as the channel sees them."""

    def prepare(self, generation: int, contents: Mapping[str, str]) -> None: ...

    def apply(self, generation: int) -> None: ...

    def cancel(self, generation: int) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInterface:
    """Parts of a node that the parent has access to."""

    readings: Readings
    desk: NodeDesk
    service: Stoppable
    reopen: Callable[[], None]
    """Function that opens the files of event handlers again."""
    gone: Callable[[str, bool], None]
    """Called with the name of a node whose process has died, and whether its port had been open."""
    reloads: Reloadable


@dataclass(frozen=True, slots=True)
class Inherited:
    """Resources that a worker has from its parent."""

    link: ParentLink
    doors: Mapping[str, socket.socket]
    """Socket of each door, by name: bound, and shared with the other workers."""
    broker: BrokerAddress | None
    """Embedded broker of the parent, if it runs one."""
    load: WorkerLoad
    """Connection count of this worker, beside those of the others."""


class ParentLink:
    """Channel of a worker to its parent."""

    def __init__(self, reactor: Any, number: int) -> None:
        """`number` is the number of the worker, counted from 1."""
        self._reactor = reactor
        self._log = Logger(namespace="owsla")
        self.number = number
        self.channel = Channel(reactor, self._received, self._parent_gone)
        self._node: NodeInterface | None = None
        self._ready = False
        self._stopping = False

    def introduce(self, node: NodeInterface) -> None:
        """Connect the channel with the node."""
        self._node = node

    # -- reports to the parent ---------------------------------------------------------------------------------------------

    def node(self, node: str) -> None:
        """Report the name of the node."""
        self.channel.send("node", node=node)

    def ready(self, drain_timeout: float, shown: ServedCertificate | None) -> None:
        """Report that the ports are open, once.

        Report also how long a shutdown may take, in seconds, and the certificate that devices are shown, if any: the parent may
        have been started with other settings.
        """
        if not self._ready:
            self._ready = True
            self.channel.send("ready", drain_timeout=drain_timeout, **(shown._asdict() if shown is not None else {}))

    # -- commands of the parent --------------------------------------------------------------------------------------------

    def _received(self, message: dict[str, Any]) -> None:
        kind, node = message.get("type"), self._node
        if kind == "ping":
            self.channel.send("pong")
        elif kind == "stop":
            self.stop("the parent stops this worker")
        elif kind == "ask":
            self._answer(node, message["id"], message["what"], message.get("args", {}))
        elif node is None:
            pass  # the node could not be made, and the process ends
        elif kind == "hurry":
            node.service.hurry()
        elif kind == "reopen":
            node.reopen()
        elif kind == "gone":
            node.gone(message["node"], message.get("served", True))
        elif kind == "reload":
            node.reloads.prepare(message["generation"], message["files"])
        elif kind == "apply":
            node.reloads.apply(message["generation"])
        elif kind == "cancel":
            node.reloads.cancel(message["generation"])

    def _answer(self, node: NodeInterface | None, number: int, what: str, args: Mapping[str, Any]) -> None:
        """Answer a question of the parent: with `None` if that is not possible."""

        def answered(value: Any) -> None:
            self.channel.send("answer", id=number, value=value)

        def failed(failure: Failure) -> None:
            if failure.check(UnknownQuestion) is None:  # otherwise the parent is of a newer version
                self._log.failure("Answering the question {what} failed", failure, what=what)
            answered(None)

        if node is None:
            answered(None)
        elif what in QUESTIONS:
            answered(answer(node.readings, what))
        else:
            node.desk.answer(what, args).addCallback(answered).addErrback(failed)

    def stop(self, why: str) -> None:
        """Stop in order. A second call does nothing."""
        if not self._stopping:
            self._stopping = True
            self._log.info("Stopping: {why}", why=why)
            try:
                self._reactor.stop()
            except ReactorNotRunning:
                pass  # the process stops already, because of a failure

    def _parent_gone(self) -> None:
        if self._stopping or self._node is None:
            return
        self._node.service.shorten(ORPHAN_TIMEOUT)
        self.stop("the parent is gone")


class EventsToParent:
    """Event handler that passes events to the parent, which writes them to files and databases."""

    def __init__(self, link: ParentLink, stats: HandlerStats) -> None:
        """`stats` counts the events that the parent was too slow for."""
        self._channel = link.channel
        self._stats = stats
        self._missed = 0

    def handle(self, event: Event, node: str, when: float) -> None:
        if self._missed and self._offer(EventsDropped(self._stats.name, self._missed), node, when):
            self._missed = 0
        if not self._offer(event, node, when):
            self._missed += 1
            self._stats.dropped += 1

    def _offer(self, event: Event, node: str, when: float) -> bool:
        return self._channel.offer("event", time=when, node=node, event=to_wire(event))


@implementer(ILogObserver)
class LogToParent:
    """Log observer that passes lines to the parent, which writes the log."""

    def __init__(self, channel: Channel, in_reactor: Callable[..., Any]) -> None:
        """`in_reactor(f, …)` calls `f` in the reactor's thread (`callFromThread`), in which this is constructed: any thread may
        log.
        """
        self._channel = channel
        self._in_reactor = in_reactor
        self._thread = threading.get_ident()
        self._missed = 0
        self.lost = 0
        """Number of lines lost so far."""

    def __call__(self, event: Any) -> None:
        level = event.get("log_level", LogLevel.info)
        if level < LogLevel.info:
            return
        text, (_, trace) = with_traceback(event), parts_of(event)
        line: dict[str, Any] = {"level": level.name, "namespace": str(event.get("log_namespace", "-")), "text": text}
        if trace:
            line["traceback"] = trace  # a second time, for the JSON log of a parent that splits them
        if FIELDS in event:
            line["fields"] = event[FIELDS]
        if threading.get_ident() == self._thread:
            self._tell(line)
        else:
            self._in_reactor(self._tell, line)

    def _tell(self, line: Mapping[str, Any]) -> None:
        if self._missed and self._channel.offer(
            "log", level="warn", namespace="owsla", text=f"The log has lost {self._missed} lines here: the parent is too slow"
        ):
            self._missed = 0
        if not self._channel.offer("log", **line):
            self._missed += 1
            self.lost += 1
