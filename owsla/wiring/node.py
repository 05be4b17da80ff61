"""Construction of a node: the services of one process, which is a worker of a parent or runs on its own."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from .. import http
from ..config.settings import Settings
from ..log import LineStream, Lossy
from ..runtime.daemon_thread import in_daemon_thread
from ..runtime.files import Files
from ..runtime.process import OrderlyStop, fail, install_worker_signal_handlers
from ..workers import Inherited, NodeInterface
from .applying import NodeChanges
from .base import Base, make_base
from .claims import announce_claims
from .configuration import Configuration, announce_development_certificate, reload_configuration
from .consuming import Consuming, make_consuming
from .desk import make_desk
from .devices import Devices, connection_limit, make_devices
from .observation import make_beat, make_handlers, make_http, make_readings
from .opening import Opening
from .operating import Operating
from .publishing import Publishing, make_publishing
from .reload import Changes, Reloads
from .service_manager import ServiceManagerReports, make_reports
from .shutdown import DeviceDrain, NodeParts, NodeService
from .sockets import Sockets, claim_sockets
from .tree import make_root
from .worker_reload import WorkerReloads

_log = Logger(namespace="owsla")


def make_node(
    reactor: Any,
    configuration: Configuration,
    log: Lossy,
    inherited: Inherited | None = None,
    *,
    stdout: LineStream | None = None,
) -> NodeService:
    """Build the parts of a node and return its service. `inherited` holds the socket and the channel that a worker has from its
    parent. `stdout` is standard output, for events, if the process has one.

    Raise `ConfigError` if the settings, or the machine, do not allow a start.
    """
    settings = configuration.settings
    max_connections = connection_limit(settings)
    if inherited is None:
        announce_development_certificate(configuration)
    sockets = claim_sockets(reactor, settings) if inherited is None else _inherited_sockets(settings, inherited)

    base = make_base(reactor, configuration, inherited)
    if inherited is None:  # the parent of a worker says that
        _log.info("This is node {node}", node=base.node_name())
    publishing = make_publishing(base)
    devices = make_devices(base, publishing, sockets.doors, configuration, max_connections)
    drain = DeviceDrain(reactor, base.deadline, publishing.lines, settings.drain_spread)
    opening = Opening(base, publishing, devices, drain)
    consuming = make_consuming(base, publishing, devices, opening, sockets.brokers, configuration)
    announce_claims(devices, publishing.broadcast)

    service = _service(base, publishing, devices, consuming, drain)
    changes = NodeChanges(base, publishing, devices, consuming, drain, sockets.embedded)
    reloads = make_reloads(base, changes) if inherited is None else None
    readings = make_readings(base, publishing, devices, consuming, service, log=log, reloads=reloads)
    desk = make_desk(base, devices)
    reports: ServiceManagerReports | None = None
    if reloads is not None:
        reports = _make_reports(base, readings, reloads)
        operating = _connect_to_process(base, service, reloads, reports)
        parts = http.ApiParts(desk, http.ProcessSource(readings), operating.actions, http.History())
        serving = make_http(reactor, sockets, parts, lambda: base.current.tokens)
    else:
        serving = make_beat(base, readings)
    service.supervise(
        make_root(
            base,
            devices,
            consuming,
            reports=reports,
            handlers=make_handlers(base, publishing, devices, stdout),
            http=serving,
            embedded=sockets.embedded,
            reloads=reloads,
            give_up=lambda gave_up: service.give_up(str(gave_up)),
        )
    )
    if inherited is not None:
        interface = NodeInterface(
            readings=readings,
            desk=desk,
            service=service,
            reopen=base.events.reopen,
            gone=consuming.registrar.gone,
            reloads=WorkerReloads(
                partial(in_daemon_thread, reactor), inherited.link.channel, base.current, changes
            ),
        )
        _connect_to_parent(base, inherited, interface)
    return service


def _inherited_sockets(settings: Settings, inherited: Inherited) -> Sockets:
    brokers = [inherited.broker] if inherited.broker is not None else list(settings.brokers)
    return Sockets(inherited.doors, None, None, None, brokers)


def _service(base: Base, publishing: Publishing, devices: Devices, consuming: Consuming, drain: DeviceDrain) -> NodeService:
    parts = NodeParts(
        ports=devices.ports,
        handshakes=devices.admission,
        registry=base.registry,
        lines=publishing.lines,
        discards=devices.services.discards,
        courier=publishing.courier,
        broadcast=publishing.broadcast,
        presence=publishing.presence,
        groups=consuming.groups,
        consumers=consuming.consumers,
        membership=consuming.registrar,
        connections=consuming.connections,
    )
    return NodeService(
        base.reactor, parts, deadline=base.deadline, drain=drain, emit=base.emit, fail=partial(fail, base.reactor)
    )


def make_reloads(base: Base, changes: NodeChanges) -> Reloads:
    """Make the service that reloads the configuration of a node without a parent."""

    def adopt(old: Configuration, new: Configuration) -> Deferred[Changes]:
        return succeed(changes.apply(new))

    def load(files: Files) -> Configuration:
        return reload_configuration(base.current.configuration, files)

    return Reloads(
        base.reactor,
        partial(in_daemon_thread, base.reactor),
        base.current,
        load=load,
        adopt=adopt,
        emit=base.emit,
        now=time.time,
    )


def _make_reports(base: Base, readings: http.Readings, reloads: Reloads) -> ServiceManagerReports | None:
    """Make the service that reports a node without a parent to the service manager, if there is one."""
    reports = make_reports(
        base.reactor,
        http.ProcessSource(readings),
        doors=lambda: len(base.settings.doors),
        reloads=reloads,
        drain_timeout=lambda: base.settings.drain_timeout,
    )
    if reports is not None:
        base.events.add(reports)
    return reports


def _connect_to_process(
    base: Base, service: NodeService, reloads: Reloads, reports: ServiceManagerReports | None
) -> Operating:
    """Connect a node to the signals of its process. Return its reloads and its stop."""
    stop = OrderlyStop(base.reactor, hurry=service.hurry, within=lambda: base.settings.drain_timeout)
    operating = Operating(stop, reloads, reports, reopen=base.events.reopen, emit=base.emit)
    operating.handle_signals(base.reactor, _nothing_to_replace)
    return operating


def _connect_to_parent(base: Base, inherited: Inherited, interface: NodeInterface) -> None:
    """Connect the node of a worker to the parent, and to the signals of its process."""
    link = inherited.link
    link.introduce(interface)
    link.node(base.node_name())
    install_worker_signal_handlers(base.reactor, stop=partial(link.stop, "received SIGTERM"))


def _nothing_to_replace() -> None:
    _log.warn("SIGUSR2 ignored: there are no --workers to replace")
