"""Opening of the device ports, and the announcements of a node: its start, and another name."""

from __future__ import annotations

import os
import socket

from ..events import NodeRenamed, NodeStarted
from .base import Base
from .devices import Devices
from .publishing import Publishing
from .shutdown import DeviceDrain


class Opening:
    """Opening of the device ports, all or none, once lines can be confirmed: every connection to the broker is up, and the node
    has joined.

    A node joins when the broker confirms its notice, which a broker that blocks publishers does not do.
    """

    def __init__(self, base: Base, publishing: Publishing, devices: Devices, drain: DeviceDrain) -> None:
        self._base = base
        self._lines = publishing.lines
        self._ports = devices.ports
        self._drain = drain
        self._joined = False

    def broker_ready(self) -> None:
        """Open the ports, if the node has joined: every connection to the broker is up."""
        if self._joined:
            self._open()

    def node_joined(self, *, broker_ready: bool) -> None:
        """Note that the node has joined the cluster. `broker_ready` is true while every connection to the broker is up."""
        self._joined = True
        if broker_ready:
            self._open()

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
        closed = [port for port in self._ports if port.closed]
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
