"""Parts of a node that face devices: the port, and what the connections share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.logger import Logger

from ..config.settings import Door, Settings
from ..device.acceptor import Limits
from ..device.admission import Admission, PortAdmission
from ..device.connected_sockets import ConnectedSockets
from ..device.connections import Connection, Connections, ConnectionsOf
from ..device.dialect_protocol import speaking
from ..device.factory import DeviceFactory
from ..device.first_bytes import foreign_protocol
from ..device.framing import Framing, make_framing
from ..device.hangup import HangupWatch
from ..device.port import DevicePort, PortHooks, PortSettings
from ..device.protocol import DeviceProtocol
from ..device.revoked import RevokedDevices
from ..device.services import DeviceRuntime, DeviceServices
from ..device.settings import DeviceSettings, SharedSettings
from ..device.socket_transport import CLOSING_TIMEOUT
from ..device.sources import SourceLimits, Sources
from ..device.tls_transport import TLSTransport
from ..dialects import Factory
from ..errors import ConfigError
from ..interfaces import FIRST_DOOR, LineSink
from ..runtime.memory import ProcessMemory
from ..runtime.open_files import allowed_connections, describe_capacity, raise_open_files_limit
from ..runtime.process import fail
from ..supervision import DynamicSupervisor
from ..tls.device import DeviceTLS, DeviceTLSMaterial
from .base import Base
from .configuration import Configuration, make_dialect
from .publishing import Publishing

_log = Logger(namespace="owsla")


@dataclass(frozen=True, slots=True)
class DeviceDoor:
    """Parts of one door."""

    dialect: Factory | None
    """Factory of the dialects of connections, from the start to the first reload that changes it."""
    factory: DeviceFactory
    admission: PortAdmission[Any]
    port: DevicePort
    tls: DeviceTLS | None
    revoked: RevokedDevices

    def use(self, material: DeviceTLSMaterial, handshake_timeout: float) -> None:
        """Use other certificates, authorities and revocation lists, and close connections of devices whose certificate they
        revoke.
        """
        if self.tls is not None:
            self.tls.use(material)
            self.revoked.check(material.revocation, handshake_timeout)

    def configure(self, settings: Settings, max_connections: int) -> None:
        """Follow other settings of the door. `max_connections` is the limit of the process."""
        self.factory.configure(device_settings(settings))
        self.admission.configure(_port_limit(settings, max_connections))
        self.port.configure(_port_settings(self.factory.door, settings), source_limits(settings))


@dataclass(frozen=True, slots=True)
class Devices:
    """Parts of a node that face devices."""

    endpoints: DynamicSupervisor[Connection]
    services: DeviceServices
    sockets: ConnectedSockets
    admission: Admission[TLSTransport]
    doors: Mapping[str, DeviceDoor]
    """Doors by name, the one that the top-level options describe first."""

    @property
    def first(self) -> DeviceDoor:
        """The door that the top-level options describe."""
        return self.doors[FIRST_DOOR]

    @property
    def ports(self) -> list[DevicePort]:
        """Ports of all doors."""
        return [door.port for door in self.doors.values()]

    def body_fault(self, body: bytes) -> str | None:
        """Return the reason for which no connection can be sent a message with this body, or `None`."""
        faults = [door.factory.framing.fault(body) for door in self.doors.values()]
        return faults[0] if all(fault is not None for fault in faults) else None

    def use(self, configuration: Configuration) -> None:
        """Use the certificates, authorities, revocation lists and deny list of another configuration."""
        for door in configuration.settings.doors:
            material = configuration.device_tls.get(door.name)
            if material is not None:
                self.doors[door.name].use(material, door.settings.handshake_timeout)
        self.services.denied.use(configuration.deny_list)

    def configure(self, settings: Settings) -> None:
        """Follow other settings of the node and of its doors."""
        self.services.configure(shared_settings(settings))
        max_connections = _changed_connection_limit(settings, self.admission.max_connections)
        self.admission.configure(max_connections, settings.max_handshakes)
        for door in settings.doors:
            self.doors[door.name].configure(door.settings, max_connections)
        self.sockets.configure(settings.linger)


def connection_limit(settings: Settings) -> int:
    """Raise the limit of open files, and return how many connections fit into it."""
    open_files = raise_open_files_limit()
    connections, warning = allowed_connections(settings.max_connections, open_files)
    if warning is not None:
        _log.warn("{warning}", warning=warning)
    _log.info("{capacity}", capacity=describe_capacity(settings.max_connections, connections, open_files))
    return connections


def _changed_connection_limit(settings: Settings, present: int) -> int:
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
    base: Base,
    publishing: Publishing,
    sockets: Mapping[str, socket.socket],
    configuration: Configuration,
    max_connections: int,
) -> Devices:
    """Make the doors, and what their connections share: lines go to `publishing`. `sockets` has the socket of each door."""
    settings = base.settings
    endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(base.reactor, name="endpoints", shutdown=CLOSING_TIMEOUT)
    hangups = HangupWatch(base.reactor)
    services = DeviceServices(
        DeviceRuntime(base.reactor, base.end_of_turn, base.events.emit, time.time),
        shared_settings(settings),
        Connections(base.ids, base.registry, endpoints),
        publishing.lines.publishers[FIRST_DOOR],
        publishing.courier,
        hangups,
    )
    services.denied.use(configuration.deny_list)
    connected = ConnectedSockets(
        base.reactor,
        Admission(max_connections, settings.max_handshakes),
        hangups,
        base.end_of_turn,
        linger=settings.linger,
        housekeeping=services.housekeeping,
        memory=ProcessMemory(),
    )
    doors = {
        door.name: _make_door(
            base,
            door,
            publishing.lines.publishers[door.name],
            services,
            connected,
            sockets[door.name],
            configuration.device_tls.get(door.name),
        )
        for door in settings.doors
    }
    return Devices(endpoints, services, connected, connected.admission, doors)


def _make_door(
    base: Base,
    door: Door,
    sink: LineSink,
    services: DeviceServices,
    connected: ConnectedSockets,
    sock: socket.socket,
    material: DeviceTLSMaterial | None,
) -> DeviceDoor:
    """Make the parts of a door. `sink` takes its lines, and `material` is its TLS, if any."""
    settings = door.settings
    tls = DeviceTLS(material) if material is not None else None
    dialect = make_dialect(door)
    factory = DeviceFactory(
        services,
        device_settings(settings),
        device_protocol(settings, dialect),
        identify=tls.identify if tls is not None else None,
        door=door.name,
        sink=sink,
    )
    limit = _port_limit(settings, connected.admission.max_connections)
    admission = PortAdmission(connected.admission, limit, handshakes=tls is not None)
    port = DevicePort(
        base.reactor,
        sock,
        tls,
        factory,
        connected,
        Limits(
            admission,
            Sources(source_limits(settings), base.reactor.seconds, services.denied.denies_address),
            base.inherited.load if base.inherited is not None else None,
        ),
        _port_settings(door.name, settings),
        PortHooks(base.emit, partial(fail, base.reactor), lambda first: foreign_protocol(factory.framing, first)),
    )
    lists = material.revocation if material is not None else None
    return DeviceDoor(
        dialect,
        factory,
        admission,
        port,
        tls,
        RevokedDevices(base.reactor, ConnectionsOf(base.registry, factory), lists),
    )


def _port_settings(name: str, settings: Settings) -> PortSettings:
    """Return the settings of the port of a door."""
    return PortSettings(settings.handshake_timeout, settings.proxy_protocol, name)


def _port_limit(settings: Settings, max_connections: int) -> int:
    """Return the limit on connections of a door: its own, within that of the process."""
    return max_connections if settings.max_connections is None else min(settings.max_connections, max_connections)


def shared_settings(settings: Settings) -> SharedSettings:
    """Return the settings that the connections of all doors share."""
    return SharedSettings(
        gap_timeout=settings.gap_timeout,
        reorder_limit=settings.reorder_limit,
        write_timeout=settings.write_timeout,
        replace=settings.on_duplicate == "replace",
        max_flaps=settings.max_flaps,
    )


def source_limits(settings: Settings) -> SourceLimits:
    """Return the limits for each source address of the device port."""
    return SourceLimits(settings.max_per_address, settings.max_connect_rate)


def device_settings(settings: Settings) -> DeviceSettings:
    """Return the settings of the connections of a door."""
    framing = make_framing(settings.framing, settings.delimiter, settings.max_line)
    return DeviceSettings(
        framing=framing,
        skip_long=settings.on_long == "skip",
        write_buffer=settings.write_buffer,
        idle_timeout=settings.idle_timeout,
        max_rate=settings.max_rate,
        proxy_identity=settings.proxy_identity,
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
