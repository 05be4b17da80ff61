"""Opening of the device ports, and the announcements of a node: its start, and another name."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Final

from ..events import NodeRenamed, NodeStarted
from ..interfaces import DelayedCall
from .base import Base
from .devices import Devices
from .publishing import Publishing
from .shutdown import DeviceDrain

HEARING: Final = 2.0
"""Seconds that the ports wait for the exchange that reaches all nodes. It takes some 50 ms after all other connections; devices
can be served without it."""


class Opening:
    """Opening of the device ports, all or none, once lines can be confirmed: every connection to the broker is up, and the node
    has joined.

    A node joins when the broker confirms its notice, which a broker that blocks publishers does not do. The ports wait also
    until the node hears the questions of others, for `HEARING` at most: messages by name to its devices would be recorded as
    `unknown-device` before.
    """

    def __init__(self, base: Base, publishing: Publishing, devices: Devices, drain: DeviceDrain) -> None:
        self._base = base
        self._lines = publishing.lines
        self._broadcast = publishing.broadcast
        self._ports = devices.ports
        self._drain = drain
        self._joined = False
        self._broker_ready: Callable[[], bool] = lambda: False
        self._waited = False
        self._waiting: DelayedCall | None = None

    def follow(self, broker_ready: Callable[[], bool]) -> None:
        """Open the ports while `broker_ready()` says that every connection to the broker is up, but for optional ones."""
        self._broker_ready = broker_ready
        self._broadcast.watch(self._broadcast_changed)

    def broker_ready(self) -> None:
        """Open the ports, if the node has joined: every connection to the broker is up."""
        self._open()

    def node_joined(self) -> None:
        """Note that the node has joined the cluster, and open the ports if every connection to the broker is up."""
        self._joined = True
        self._open()

    def _broadcast_changed(self, state: str) -> None:
        if state != "away" and self._waiting is not None:
            self._waiting.cancel()
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        self._waiting = None
        self._waited = True
        self._open()

    def _waits(self) -> bool:
        """Return whether the ports are to wait for the exchange that reaches all nodes: only once."""
        if self._waited or self._broadcast.state != "away":
            return False
        if self._waiting is None:
            self._waiting = self._base.reactor.callLater(HEARING, self._stop_waiting)
        return True

    def renamed(self, before: str, reason: str) -> None:
        """Have replies sent to the queue of the new name, and close the connections of the old name."""
        base = self._base
        self._lines.answer_to(base.node_queue(base.node()).name.encode())
        if base.inherited is not None:
            base.inherited.link.node(base.node_name())
        base.emit(NodeRenamed(before, base.node_name(), len(base.registry), reason))
        self._report_start()
        self._drain.close_all(base.registry, f"this node has another name now: {reason}")

    def _open(self) -> None:
        if not self._joined or not self._broker_ready() or self._base.deadline.stopping:
            return
        closed = [port for port in self._ports if port.closed]
        if closed and self._waits():
            return
        if closed and all(port.startListening() for port in closed):
            for port in closed:
                port.startAccepting()
            self._report_start()
        inherited = self._base.inherited
        if inherited is not None:
            inherited.link.ready(self._base.deadline.timeout, self._base.current.shown())

    def _address(self) -> str:
        """Return the address of the first port, which tells nodes on the same host apart."""
        host = self._ports[0].host
        return self._base.settings.interface or "all interfaces" if host in ("::", "0.0.0.0") else host

    def _report_start(self) -> None:
        inherited = self._base.inherited
        self._base.emit(
            NodeStarted(
                socket.gethostname(),
                self._address(),
                self._ports[0].port,
                inherited.link.number if inherited is not None else 0,
                os.getpid(),
            )
        )
