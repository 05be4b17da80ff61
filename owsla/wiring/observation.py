"""Observation of a node: event handlers, and the pages and metrics over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import starmap
from typing import Any, Final

from .. import http
from ..device.services import DeviceTotals
from ..events import DuplicatesWatch, handlers_from
from ..log import LineStream, Lossy
from ..supervision import ChildSpec
from ..workers import EventsToParent
from .base import Base
from .configuration import CurrentConfiguration
from .consuming import Consuming
from .devices import Devices
from .publishing import Publishing
from .shutdown import NodeService
from .sockets import Sockets
from .tree import child

SHARED_HANDLERS: Final = frozenset({"json", "database"})
"""Kinds of event handlers that run once for all workers, in the parent. Two on one file would interfere,
and the standard output of a worker is a pipe to its parent."""


def make_handlers(base: Base, publishing: Publishing, devices: Devices, stdout: LineStream | None) -> list[ChildSpec]:
    """Return the event handlers of a node. A worker leaves the shared kinds to its parent, and sends it the events."""
    inherited, settings = base.inherited, base.settings
    specs = [spec for spec in settings.events if inherited is None or spec.kind not in SHARED_HANDLERS]
    handlers = handlers_from(specs, base.reactor, base.events, presence=publishing.presence, stdout=stdout)
    if inherited is not None and len(specs) < len(settings.events):
        base.events.add(EventsToParent(inherited.link, base.events.stats("parent")), "parent")
    deliveries = devices.services.deliveries
    return [
        *(ChildSpec(handler.id, handler.start) for handler in handlers),
        ChildSpec(
            "duplicates", lambda: DuplicatesWatch(base.reactor, base.emit, lambda: deliveries.duplicates)
        ),
    ]


def make_readings(
    base: Base,
    publishing: Publishing,
    devices: Devices,
    consuming: Consuming,
    service: NodeService,
    *,
    log: Lossy,
    reloads: http.ReloadReadings | None,
) -> http.Readings:
    """Return what HTTP reads of a node."""
    return http.Readings(
        node=base.node_name,
        admission=devices.admission,
        doors={
            name: http.DoorReadings(door.port, door.admission, publishing.lines.publishers[name], publishing.latency[name])
            for name, door in devices.doors.items()
        },
        devices=DeviceTotals(devices.services),
        courier=publishing.courier,
        names=http.NameReadings(
            lambda: len(devices.services.devices), consuming.by_name.locations, consuming.groups, publishing.broadcast
        ),
        health=consuming.health,
        draining=lambda: base.deadline.stopping,
        tree=service.tree,
        events=base.event_counts,
        event_drops=lambda: base.events.drops,
        log_lost=lambda: log.lost,
        reloads=reloads,
        certificate_expires=lambda: _first(material.not_after for material in base.current.device_tls),
        crl_expires=lambda: _first(material.crl_expires for material in base.current.device_tls),
        ocsp_expires=lambda: _first(material.ocsp_expires for material in base.current.device_tls),
        broker_connections=lambda: [connection.status for connection in consuming.connections],
        certificates=certificates_of(base.current),
    )


def certificates_of(current: CurrentConfiguration) -> Callable[[], Iterable[http.CertificateReading]]:
    """Return a function that returns the certificates and lists of the configuration in force."""
    return lambda: starmap(http.CertificateReading, current.inventory(time.time()))


def _first(times: Iterable[float | None]) -> float | None:
    """Return the first of some times; `None` if there are none."""
    return min((time for time in times if time is not None), default=None)


def make_http(
    reactor: Any, sockets: Sockets, parts: http.ApiParts, tokens: Callable[[], http.Tokens]
) -> list[ChildSpec]:
    """Return the HTTP server of a process without a parent, and the samples that it shows. `tokens` returns those in force."""
    listeners = []
    if sockets.http is not None:
        listeners.append(http.tcp_listener(reactor, sockets.http, parts, tokens))
    if sockets.control is not None:
        listeners.append(http.control_listener(reactor, sockets.control, parts))
        reactor.addSystemEventTrigger("after", "shutdown", sockets.control.close)  # removes the file
    if not listeners:
        return []
    return [
        child("http", http.HttpService(reactor, listeners)),
        child("samples", http.SampleService(reactor, parts.source, parts.history, now=parts.now)),
    ]


def make_beat(base: Base, readings: http.Readings) -> list[ChildSpec]:
    """Return the service of a worker that measures its reactor for the HTTP server of its parent."""
    return [child("beat", http.LatenessProbe(base.reactor, readings.lateness))]
