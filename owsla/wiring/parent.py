"""Construction of the parent of `--workers`: worker processes, and what they have in common."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from twisted.internet.defer import ensureDeferred

from .. import http
from ..config.settings import Settings
from ..desk import RecentEvents
from ..embedded import EmbeddedBroker
from ..errors import ConfigError
from ..events import EventManager, from_wire, handlers_from, supervision_event
from ..log import LineStream, Lossy
from ..routing import ConnectionIds
from ..runtime.daemon_thread import in_daemon_thread
from ..runtime.files import Files
from ..runtime.open_files import check_parent, raise_open_files_limit
from ..runtime.process import OrderlyStop, fail
from ..supervision import ChildSpec, Intensity, Supervisor
from ..tls.expiry import ExpiryWatch
from ..workers import Loads, NodeEvents, ParentService, WorkerPool, WorkerStart
from .applying import applied_changes
from .configuration import (
    Configuration,
    CurrentConfiguration,
    announce_development_certificate,
    reload_configuration,
)
from .desk import make_parent_desk
from .observation import SHARED_HANDLERS, certificates_of, make_http
from .operating import Operating
from .reload import Changes, Reloads
from .service_manager import ServiceManagerReports, make_reports
from .sockets import claim_sockets
from .tree import child


@dataclass(frozen=True, slots=True)
class ParentEvents:
    """Events of a parent and of all its workers."""

    everything: EventManager
    """Handles all events: those of the workers, too."""
    own: EventManager
    """Handles the parent's own events."""
    counts: http.EventCounts
    """Counts of the parent's own events."""
    recent: RecentEvents
    """The last of the parent's own events."""
    handlers: list[ChildSpec]

    def drops(self) -> dict[str, int]:
        """Return the number of events that each handler has missed, by its name."""
        return self.everything.drops | self.own.drops


def make_parent(reactor: Any, configuration: Configuration, log: Lossy, stdout: LineStream | None = None) -> ParentService:
    """Return the parent of `--workers`. `stdout` is standard output, for events, if the process has one.

    Workers read the settings again from the same arguments and file contents. Raise `ConfigError` as for a node.
    """
    settings = configuration.settings
    check_parent(settings.worker_count, raise_open_files_limit())
    announce_development_certificate(configuration)
    sockets = claim_sockets(reactor, settings)
    events = make_parent_events(reactor, settings, stdout)
    current = CurrentConfiguration(configuration)
    start = WorkerStart(
        generation=0,
        argv=configuration.argv,
        files=configuration.files,
        count=settings.worker_count,
        broker_port=sockets.brokers[0].port if sockets.embedded is not None else None,
        doors=sockets.doors,
        loads=Loads.create(settings.worker_count),
        cwd=os.getcwd(),
        drain_timeout=settings.drain_timeout,
    )
    pool = WorkerPool(
        reactor,
        start,
        emit=lambda when, node, event: events.everything.emit(from_wire(event), node, when),
        refused=partial(fail, reactor),
    )
    reloads = make_parent_reloads(reactor, current, pool, events, sockets.embedded)
    service = ParentService(
        doors=sockets.doors.values(),
        pool=pool,
        reload=reloads.request,
        replaced=current.workers_replaced,
        fail=partial(fail, reactor),
    )
    readings = http.ParentReadings(
        workers=lambda: pool.processes,
        draining=lambda: service.draining,
        tree=service.tree,
        events=events.counts,
        event_drops=events.drops,
        log_lost=lambda: log.lost,
        reloads=reloads,
        certificates=certificates_of(current),
    )
    expiry = ExpiryWatch(
        reactor,
        events.everything.emit,
        shown=lambda: current.device_tls,
        certificates=current.broker_certificates,
        now=time.time,
    )
    source = http.ParentSource(reactor, readings)
    reports = make_reports(
        reactor,
        source,
        doors=lambda: len(current.settings.doors),
        reloads=reloads,
        drain_timeout=lambda: current.settings.drain_timeout,
    )
    if reports is not None:
        pool.call_when_ready(reports.opened)
    operating = _connect_to_process(reactor, service, events, reloads, reports, lambda: current.settings.drain_timeout)
    desk = make_parent_desk(reactor, pool, events.recent, events.everything.emit)
    parts = http.ApiParts(desk, source, operating.actions, http.History())
    serving = make_http(reactor, sockets, parts, lambda: current.tokens)
    watches = [child("certificate", expiry), child("reload", reloads)]
    service.supervise(make_parent_root(reactor, service, events, sockets.embedded, serving, reports, watches))
    return service


def _connect_to_process(
    reactor: Any,
    service: ParentService,
    events: ParentEvents,
    reloads: Reloads,
    reports: ServiceManagerReports | None,
    within: Callable[[], float],
) -> Operating:
    """Connect a parent to the signals of its process. Return its reloads and its stop, of `within()` seconds at most."""

    def reopen() -> None:
        events.everything.reopen()
        service.reopen()

    stop = OrderlyStop(reactor, hurry=service.hurry, within=within)
    operating = Operating(stop, reloads, reports, reopen=reopen, emit=events.everything.emit)
    operating.handle_signals(reactor, service.replace)
    return operating


def make_parent_reloads(
    reactor: Any,
    current: CurrentConfiguration,
    pool: WorkerPool,
    events: ParentEvents,
    embedded: EmbeddedBroker | None,
) -> Reloads:
    """Make the service that reloads the configuration of a parent and its workers."""

    async def adopt(old: Configuration, new: Configuration) -> Changes:
        await pool.adopt(new.files, new.settings.drain_timeout)
        current.replace(new)
        if embedded is not None:
            embedded.configure(new.settings.embedded_memory)
        return applied_changes(old, new, workers=True)

    def load(files: Files) -> Configuration:
        new = reload_configuration(current.configuration, files, serves_devices=False)
        if new.changes is not None and "listen" in new.changes.restart:
            # A worker that starts later would have other doors than the others.
            raise ConfigError("--listen: a door that comes or goes takes a restart; restart, or undo it")
        if new.changes is not None and "broker" in new.changes.restart:
            # A worker that starts later would have another broker than the others, or none.
            raise ConfigError("--broker: a change from or to the embedded broker takes a restart; restart, or undo it")
        return new

    return Reloads(
        reactor,
        partial(in_daemon_thread, reactor),
        current,
        load=load,
        adopt=lambda old, new: ensureDeferred(adopt(old, new)),
        emit=events.everything.emit,
        now=time.time,
    )


def make_parent_events(reactor: Any, settings: Settings, stdout: LineStream | None) -> ParentEvents:
    """Make the event managers of a parent.

    Files and databases are told of everything. The parent's own events go to the console, too; the workers' events are in their
    logs already.
    """
    name = ConnectionIds().node.decode()
    everything, own = EventManager(lambda: name), EventManager(lambda: name)
    counts = http.EventCounts(own=lambda: name)
    everything.add(counts)
    everything.add(NodeEvents(name, own), "own")
    recent = RecentEvents(os.urandom(4).hex())
    own.add(recent)
    console = [spec for spec in settings.events if spec.kind == "console"]
    shared = [spec for spec in settings.events if spec.kind in SHARED_HANDLERS]
    handlers = [*handlers_from(console, reactor, own), *handlers_from(shared, reactor, everything, stdout=stdout)]
    return ParentEvents(everything, own, counts, recent, [ChildSpec(handler.id, handler.start) for handler in handlers])


def make_parent_root(
    reactor: Any,
    service: ParentService,
    events: ParentEvents,
    embedded: EmbeddedBroker | None,
    serving: Sequence[ChildSpec],
    reports: ServiceManagerReports | None,
    watches: Sequence[ChildSpec],
) -> Supervisor:
    """Make the root supervisor of a parent."""
    workers = service.pool.workers
    return Supervisor(
        reactor,
        [
            *([child("service-manager", reports)] if reports is not None else []),
            ChildSpec("events", lambda: Supervisor(reactor, events.handlers), type="supervisor"),
            *serving,
            *([child("embedded", embedded)] if embedded is not None else []),
            # Each worker bounds its own shutdown by its --drain-timeout.
            *(child(f"worker-{worker.number}", worker, shutdown=math.inf) for worker in workers),
            *watches,
        ],
        name="owsla",
        # One cause may end all workers at once, and two such rounds may be a coincidence.
        intensity=Intensity(restarts=max(Intensity().restarts, 2 * len(workers))),
        on_event=lambda report: events.everything.emit(supervision_event(report)),
        on_give_up=lambda gave_up: service.give_up(str(gave_up)),
    )
