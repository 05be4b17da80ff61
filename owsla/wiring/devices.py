"""Parts of a node that face devices: the port, and what the connections share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from twisted.logger import Logger

from ..config.settings import Settings
from ..device.acceptor import Limits
from ..device.admission import Admission, PortAdmission
from ..device.connected_sockets import ConnectedSockets
from ..device.connections import Connection, Connections
from ..device.dialect_protocol import speaking
from ..device.factory import DeviceFactory
from ..device.framing import Framing, make_framing
from ..device.hangup import HangupWatch
from ..device.port import DevicePort, PortHooks, PortSettings
from ..device.protocol import DeviceProtocol
from ..device.revoked import RevokedDevices
from ..device.services import DeviceRuntime, DeviceServices
from ..device.settings import DeviceSettings, SharedSettings
from ..device.sources import SourceLimits, Sources
from ..device.transport import CLOSING_TIMEOUT, TLSTransport
from ..dialects import Factory
from ..errors import ConfigError
from ..runtime.memory import ProcessMemory
from ..runtime.open_files import allowed_connections, describe_capacity, raise_open_files_limit
from ..runtime.process import fail
from ..supervision import DynamicSupervisor
from ..tls.device import DeviceTLS
from .base import Base
from .configuration import Configuration, make_dialect
from .publishing import Publishing

_log = Logger(namespace="owsla")


@dataclass(frozen=True, slots=True)
class Devices:
    """Parts of a node that face devices."""

    dialect: Factory | None
    """Factory of the dialects of connections, from the start to the first reload that changes it."""
    endpoints: DynamicSupervisor[Connection]
    services: DeviceServices
    factory: DeviceFactory
    sockets: ConnectedSockets
    admission: Admission[TLSTransport]
    port_admission: PortAdmission[TLSTransport]
    listener: DevicePort
    tls: DeviceTLS
    revoked: RevokedDevices

    def body_fault(self, body: bytes) -> str | None:
        """Return the reason for which no connection can be sent a message with this body, or `None`."""
        return self.factory.framing.fault(body)

    def use(self, configuration: Configuration) -> None:
        """Use the certificates, authorities and revocation lists of another configuration, and close connections of devices
        whose certificate it revokes.
        """
        material = configuration.device_tls
        self.tls.use(material)
        self.revoked.check(material.revocation, configuration.settings.handshake_timeout)


def connection_limit(settings: Settings) -> int:
    """Raise the limit of open files, and return how many connections fit into it."""
    open_files = raise_open_files_limit()
    connections, warning = allowed_connections(settings.max_connections, open_files)
    if warning is not None:
        _log.warn("{warning}", warning=warning)
    _log.info("{capacity}", capacity=describe_capacity(settings.max_connections, connections, open_files))
    return connections


def changed_connection_limit(settings: Settings, present: int) -> int:
    """Return how many connections fit into the limit of open files now; `present` is the number so far."""
    open_files = raise_open_files_limit()
    try:
        connections, warning = allowed_connections(settings.max_connections, open_files)
    except ConfigError as error:  # somebody has lowered the limit of open files
        _log.warn("{error}", error=str(error))
        return present
    if connections != present:
        if warning is not None:
            _log.warn("{warning}", warning=warning)
        _log.info("{capacity}", capacity=describe_capacity(settings.max_connections, connections, open_files))
    return connections


def make_devices(
    base: Base, publishing: Publishing, port: socket.socket, configuration: Configuration, max_connections: int
) -> Devices:
    """Make the device port and what the connections share: lines go to `publishing`."""
    settings = base.settings
    tls = DeviceTLS(configuration.device_tls)
    dialect = make_dialect(settings)
    endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(base.reactor, name="endpoints", shutdown=CLOSING_TIMEOUT)
    hangups = HangupWatch(base.reactor)
    services = DeviceServices(
        DeviceRuntime(base.reactor, base.end_of_turn, base.emit, time.time),
        shared_settings(settings),
        Connections(base.ids, base.registry, endpoints),
        publishing.lines,
        publishing.courier,
        hangups,
    )
    factory = DeviceFactory(services, device_settings(settings), device_protocol(settings, dialect), identify=tls.identify)
    admission: Admission[TLSTransport] = Admission(max_connections, settings.max_handshakes)
    connected = ConnectedSockets(
        base.reactor,
        admission,
        hangups,
        linger=settings.linger,
        housekeeping=services.housekeeping,
        memory=ProcessMemory(),
    )
    port_admission = PortAdmission(admission, max_connections)
    sources = Sources(source_limits(settings), base.reactor.seconds)
    share = base.inherited.load if base.inherited is not None else None
    revoked = RevokedDevices(base.reactor, base.registry, configuration.device_tls.revocation)
    listener = DevicePort(
        base.reactor,
        port,
        tls,
        factory,
        connected,
        Limits(port_admission, sources, share),
        port_settings(settings),
        PortHooks(base.emit, partial(fail, base.reactor)),
    )
    return Devices(dialect, endpoints, services, factory, connected, admission, port_admission, listener, tls, revoked)


def port_settings(settings: Settings) -> PortSettings:
    """Return the times of the device port."""
    return PortSettings(settings.handshake_timeout)


def shared_settings(settings: Settings) -> SharedSettings:
    """Return the settings that the connections of all doors share."""
    return SharedSettings(
        gap_timeout=settings.gap_timeout,
        reorder_limit=settings.reorder_limit,
        write_timeout=settings.write_timeout,
        replace=settings.on_duplicate == "replace",
    )


def source_limits(settings: Settings) -> SourceLimits:
    """Return the limits for each source address of the device port."""
    return SourceLimits(settings.max_per_address)


def device_settings(settings: Settings) -> DeviceSettings:
    """Return the settings of the connections of a door."""
    framing = make_framing(settings.framing, settings.delimiter, settings.max_line)
    return DeviceSettings(
        framing=framing,
        skip_long=settings.on_long == "skip",
        write_buffer=settings.write_buffer,
        idle_timeout=settings.idle_timeout,
        max_rate=settings.max_rate,
        device_ack=_acknowledgement(settings.device_ack, framing),
    )


def device_protocol(settings: Settings, dialect: Factory | None) -> Callable[[DeviceFactory, bytes], DeviceProtocol]:
    """Return what makes the protocol of a connection, with a dialect only where one is configured."""
    if dialect is None or settings.dialect is None:
        return DeviceProtocol
    return speaking(dialect, settings.dialect.__name__)


def _acknowledgement(template: str | None, framing: Framing) -> Callable[[int], bytes] | None:
    """Return what makes the line that tells a device up to which number its lines are safe (`--device-ack`)."""
    if template is None:
        return None
    before, after = template.encode().split(b"{seq}", 1)
    encode = framing.encode
    return lambda seq: encode((b"%b%d%b" % (before, seq, after),))
