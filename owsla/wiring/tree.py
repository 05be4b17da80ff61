"""The supervision tree of a node."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from ..embedded import EmbeddedBroker
from ..events import supervision_event
from ..supervision import AnyService, ChildSpec, GaveUp, Supervisor
from ..tls.expiry import ExpiryWatch
from .base import Base
from .consuming import Consuming
from .devices import Devices
from .reload import Reloads
from .service_manager import ServiceManagerReports


def child(
    name: str, service: AnyService, type: Literal["worker", "supervisor"] = "worker", shutdown: float | None = None
) -> ChildSpec:
    """Return the specification of a service that can be started again after it was stopped."""
    return ChildSpec(name, lambda: service, type=type, shutdown=shutdown)


def make_root(
    base: Base,
    devices: Devices,
    consuming: Consuming,
    *,
    reports: ServiceManagerReports | None,
    handlers: Sequence[ChildSpec],
    http: Sequence[ChildSpec],
    embedded: EmbeddedBroker | None,
    reloads: Reloads | None,
    give_up: Callable[[GaveUp], object],
) -> Supervisor:
    """Make the root supervisor of a node. `give_up` is called when it has restarted too often.

    Children stop in the reverse order. Reports to the service manager, events and HTTP are the first and so stop last: while
    devices are closed one after another, HTTP says that this node is not ready any longer.
    """
    reactor = base.reactor

    def events() -> Supervisor:
        return Supervisor(reactor, handlers)

    def broker() -> Supervisor:
        return Supervisor(reactor, [child(link.role.name, link) for link in consuming.connections])

    def listener() -> Supervisor:
        # Each is restarted alone. A port that failed leaves its connections alone, and `endpoints` restarts nothing, so that it
        # does not fail as a whole.
        return Supervisor(
            reactor,
            [
                child("endpoints", devices.endpoints, type="supervisor"),
                child("sockets", devices.sockets),
                *(child(str(port.name), port) for port in devices.ports),
            ],
        )

    watches = []
    if base.inherited is None:  # a worker's parent watches for all workers
        expiry = ExpiryWatch(
            reactor,
            base.emit,
            shown=lambda: base.current.device_tls,
            certificates=base.current.broker_certificates,
            now=time.time,
        )
        watches.append(child("certificate", expiry))
    if base.inherited is None or base.inherited.link.number == 1:  # one warning is enough
        watches.append(child("queues", consuming.inspection))
    if reloads is not None:
        watches.append(child("reload", reloads))
    return Supervisor(
        reactor,
        [
            *([child("service-manager", reports)] if reports is not None else []),
            ChildSpec("events", events, type="supervisor"),
            *http,
            *([child("embedded", embedded)] if embedded is not None else []),
            ChildSpec("broker", broker, type="supervisor"),
            ChildSpec("listener", listener, type="supervisor"),
            *watches,
        ],
        name="owsla",
        on_event=lambda report: base.emit(supervision_event(report)),
        on_give_up=give_up,
    )
