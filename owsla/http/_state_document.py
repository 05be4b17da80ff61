"""The state of a gateway as the API shows it. Pure.

    node                    name of the node; null with workers
    version
    started                 start of the process, or of the parent
    ready                   true if all checks pass
    checks                  {name: whether it passes}, as on /readyz
    missing_checks          descriptions of the failed checks
    numbers                 {open, max_connections, handshaking, paused, lines_in, lines_out, unconfirmed, window,
                            undeliverable}
    names                   messages by name and for many: {identified, remembered, answered, unanswered, waiting, spreading},
                            and broadcast, the number of processes by the state of the exchange that reaches all nodes
    doors                   {name: {address, processes, accepting, taking, connections, max_connections, lines_in, unconfirmed,
                            window}}
    broker_connections      [{worker, role, address, state, since, last_fault}]
    certificates            [{door, kind, file, subject, not_after, days, fault}]
    workers                 null without workers, or [{name, state, restarts, node, started, ready, checks, numbers, names}]
    missing                 names of the workers that did not answer; what is above is without them
    tree                    the supervision tree

Times are in ms since the epoch, and null if they are not known.

`state` of a connection to the broker is `waiting` (for the next attempt), `connecting`, `up`, `blocked` (RabbitMQ takes no
messages) or `stopped`; `since` is the time of its last change. `last_fault` is null or {time, text}; it stays when the
connection is up again. `state` of a worker is `starting`, `ready`, `draining` or `ended`; the values after `restarts` are null
if it did not answer.

`kind` of a certificate is `server`, `client-ca`, `crl`, `ocsp-response`, `broker-cert` (shown to the broker), `broker-ca`, or
`broker` (shown by the broker: `file` is its address). For the last three `door` is null. `subject` of a list is its authority,
that of a response the serial number of the certificate. `days` are those until `not_after`, negative after it. `fault` says why
a list or a response cannot be used.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import starmap
from typing import Any, Final

from .. import __version__
from ._readings import CertificateReading
from ._state import BrokerConnectionState, State, WorkerState

DAY: Final = 86400.0


def state_document(state: State, now: float) -> dict[str, Any]:
    """Return the state of a gateway as JSON values, as described above. `now` is in seconds since the epoch."""
    return {
        "node": state.node or None,
        "version": __version__,
        "started": _milliseconds(state.started),
        "ready": state.ready,
        "checks": dict(state.checks),
        "missing_checks": state.missing,
        "numbers": asdict(state.numbers),
        "names": {**asdict(state.names), "broadcast": dict(state.broadcast)},
        "doors": {
            name: {"address": state.addresses.get(name), **asdict(door)} for name, door in state.doors.items()
        },
        "broker_connections": list(starmap(_broker_connection, _all_broker_connections(state))),
        "certificates": [_certificate(certificate, now) for certificate in _certificates(state)],
        "workers": None if state.workers is None else list(map(_worker, state.workers)),
        "missing": [worker.name for worker in state.workers or () if worker.says is None],
        "tree": state.tree,
    }


def _all_broker_connections(state: State) -> Iterator[tuple[str | None, BrokerConnectionState]]:
    """Yield the connections to the broker of all processes, each with the name of its worker."""
    for connection in state.broker_connections:
        yield None, connection
    for worker in state.workers or ():
        if worker.says is not None:
            for connection in worker.says.broker_connections:
                yield worker.name, connection


def _certificates(state: State) -> Iterator[CertificateReading]:
    yield from state.certificates()
    shown = dict.fromkeys(connection.certificate for _, connection in _all_broker_connections(state))
    for certificate in shown:
        if certificate is not None:
            yield CertificateReading(None, certificate)


def _broker_connection(worker: str | None, connection: BrokerConnectionState) -> dict[str, Any]:
    fault = None
    if connection.fault is not None:
        fault = {"time": _milliseconds(connection.fault_time), "text": connection.fault}
    return {
        "worker": worker,
        "role": connection.role,
        "address": connection.address,
        "state": connection.state,
        "since": _milliseconds(connection.since),
        "last_fault": fault,
    }


def _certificate(certificate: CertificateReading, now: float) -> dict[str, Any]:
    entry = certificate.entry
    return {
        "door": certificate.door,
        "kind": entry.kind,
        "file": entry.file,
        "subject": entry.subject,
        "not_after": _milliseconds(entry.not_after),
        "days": None if entry.not_after is None else round((entry.not_after - now) / DAY, 1),
        "fault": entry.fault,
    }


def _worker(worker: WorkerState) -> dict[str, Any]:
    says = worker.says
    return {
        "name": worker.name,
        "state": worker.process,
        "restarts": worker.restarts,
        "node": None if says is None else says.node,
        "started": None if says is None else _milliseconds(says.started),
        "ready": None if says is None else says.ready,
        "checks": None if says is None else dict(says.checks),
        "numbers": None if says is None else asdict(says.numbers),
        "names": None if says is None else {**asdict(says.names), "broadcast": dict(says.broadcast)},
    }


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
