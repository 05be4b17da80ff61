"""Checks for every pytest function that trial makes for its own tests."""

from __future__ import annotations

import gc
import unittest
from collections.abc import Iterator
from typing import Any, Final

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher


def _turns(reactor: Any, count: int = 3) -> None:
    """Let the reactor finish pending work: an aborted connection, for example, ends one turn later."""
    for _ in range(count):
        pytest_twisted.blockon(deferLater(reactor, 0, lambda: None))


def _sockets(reactor: Any) -> set[Any]:
    return {*reactor.getReaders(), *reactor.getWriters()}


_LONG: Final = (
    *("test_nodes", "test_guarantees", "test_faults", "test_hostile", "test_systemd", "test_workers", "test_broker_loss"),
    *("test_cli", "test_hosts", "test_supervision", "test_streams", "test_cluster", "test_one_connection", "test_debian"),
    *("test_draining", "test_dialects", "test_events", "test_http_workers", "test_queue_rules", "test_broker_login"),
    *("test_stampede", "test_round_trip", "test_tls_conformance", "test_reload_under_load", "test_swarm", "test_by_name"),
)
"""Files of tests that take more than two minutes, the longest first."""


@pytest.hookimpl(trylast=True)  # after pytest has put tests with the same fixtures together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: several run at a time, and none should be left that runs alone at the end."""
    order = {name: number for number, name in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(_LONG)))


def pytest_collection_finish() -> None:
    """Exclude all modules and tests from garbage collection, which `nothing_left_behind` runs for each test: 0.2 s of CPU."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail on a logged failure, an unhandled error in a Deferred, and timers or sockets left in the reactor.

    trial's `SynchronousTestCase` makes these checks itself, also under pytest; only functions need this fixture.
    """
    if request.cls is not None and issubclass(request.cls, unittest.TestCase):
        yield
        return

    from .integration._support.waiting import current_reactor

    reactor = current_reactor()
    _turns(reactor)  # the first turn starts the reactor, with a few sockets of its own
    failures: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event.get("log_failure") is not None:
            failures.append(event)

    timers: set[Any] = set(reactor.getDelayedCalls())
    sockets = _sockets(reactor)
    publisher: Any = globalLogPublisher
    publisher.addObserver(observe)
    try:
        yield
        _turns(reactor)
        gc.collect()  # a Deferred reports its unhandled error when it is collected
    finally:
        publisher.removeObserver(observe)
    problems = [f"logged: {formatEvent(event)}\n{event['log_failure'].getTraceback()}" for event in failures]
    problems += [f"a timer left in the reactor: {call}" for call in reactor.getDelayedCalls() if call not in timers]
    problems += [f"a socket left in the reactor: {socket}" for socket in _sockets(reactor) - sockets]
    assert not problems, "\n".join(problems)
