"""Server that holds device connections on the TLS transport of Twisted, or on that of Owsla.

Both kinds run the same `DeviceFactory` with the TLS context of a gateway, and a sink that discards lines, so that the
difference is the transport. `bench.memory` starts this with a certificate, a key and the kind (`twisted` or `owsla`). It prints
its port, and ends with its standard input.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet import reactor as _reactor
from twisted.internet.interfaces import IOpenSSLContextFactory
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from owsla.device.acceptor import Limits
from owsla.device.admission import Admission, PortAdmission
from owsla.device.connected_sockets import ConnectedSockets
from owsla.device.connections import Connection, Connections
from owsla.device.factory import DeviceFactory
from owsla.device.hangup import HangupWatch
from owsla.device.port import DevicePort, PortHooks, PortSettings
from owsla.device.protocol import DeviceProtocol
from owsla.device.services import DeviceRuntime, DeviceServices
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.letter import DeliverySource, Letter
from owsla.routing import ConnectionIds, Registry
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.runtime.memory import ProcessMemory
from owsla.runtime.open_files import raise_open_files_limit
from owsla.runtime.sockets import bind
from owsla.supervision import DynamicSupervisor
from owsla.tls.device import DeviceTLS, DeviceTLSFiles, load_device_tls

reactor: Any = _reactor


class NoCourier:
    """Courier of a server without a broker, which gets no messages."""

    def record(self, letter: Letter, reason: str) -> None: ...

    def forward(self, letter: Letter, node: bytes) -> None: ...

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None: ...

    def report(self, letter: Letter, outcome: str) -> None: ...


class DiscardingSink:
    """Sink that accepts all lines, and discards them."""

    accepting = True
    share = 1000
    line_size = 16384
    spare = 1000

    def open(self, connection_id: bytes, device_id: str | None) -> None: ...

    def traceparent(self, source: Any) -> None: ...

    def publish(self, source: Any, line: bytes, received: float = 0.0) -> None: ...

    def position(self, since: int) -> int:
        return since

    def serves(self, source: Any) -> bool:
        return True

    def wait(self, source: Any, since: int = 0) -> None: ...

    def leave(self, source: Any) -> None: ...


@implementer(IOpenSSLContextFactory)
class Context:
    """Context factory of `reactor.listenSSL`."""

    def __init__(self, context: SSL.Context) -> None:
        self._context = context

    def getContext(self) -> SSL.Context:
        return self._context


class UntilEnd(Protocol):
    """Protocol on the standard input that ends the process with it."""

    def connectionLost(self, reason: object = None) -> None:
        if reactor.running:
            reactor.stop()


def make_factory() -> tuple[DeviceFactory, ConnectedSockets]:
    """Return a factory whose connections go nowhere."""
    supervisor: DynamicSupervisor[Connection] = DynamicSupervisor(reactor)
    supervisor.startService()
    hangups = HangupWatch(reactor)
    sink: Any = DiscardingSink()
    turn = EndOfTurn(reactor)
    services = DeviceServices(
        DeviceRuntime(reactor, turn, lambda event: None, time.time),
        SharedSettings(),
        Connections(ConnectionIds(), Registry(), supervisor),
        sink,
        NoCourier(),
        hangups,
    )
    factory = DeviceFactory(services, DeviceSettings(), DeviceProtocol)
    return factory, ConnectedSockets(reactor, Admission(1_000_000, 100), hangups, turn, housekeeping=services.housekeeping)


def listen_on_twisted(factory: DeviceFactory, sockets: ConnectedSockets, tls: DeviceTLS) -> int:
    """Listen on the TLS transport of Twisted. Return the port."""
    port = reactor.listenSSL(0, factory, Context(tls.context), backlog=4096, interface="127.0.0.1")
    return int(port.getHost().port)


def listen_on_owsla(factory: DeviceFactory, sockets: ConnectedSockets, tls: DeviceTLS) -> int:
    """Listen on the device port. Return the port."""
    port = DevicePort(
        reactor,
        bind(0, "127.0.0.1"),
        tls,
        factory,
        sockets,
        Limits(PortAdmission(sockets.admission, 1_000_000)),
        PortSettings(handshake_timeout=30.0),
        PortHooks(lambda event: None, sys.exit),
    )
    sockets.startService()
    port.startService()
    port.startListening()
    port.startAccepting()
    reactor.addSystemEventTrigger("before", "shutdown", port.stopService)
    reactor.addSystemEventTrigger("before", "shutdown", sockets.stopService)
    return port.port


KINDS: dict[str, Callable[[DeviceFactory, ConnectedSockets, DeviceTLS], int]] = {
    "twisted": listen_on_twisted,
    "owsla": listen_on_owsla,
}


def main() -> None:
    """Serve on any free port of 127.0.0.1."""
    raise_open_files_limit()
    cert, key, kind = sys.argv[1:]
    tls = DeviceTLS(load_device_tls(DeviceTLSFiles(pairs=[(Path(cert), Path(key))])))
    factory, sockets = make_factory()
    port = KINDS[kind](factory, sockets, tls)
    # A gateway returns free memory after many handshakes. Here the memory is settled before each measurement.
    LoopingCall(ProcessMemory().trim).start(1.0)
    StandardIO(UntilEnd())
    print(port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main()
