"""Tests of the opening of the device ports."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.wiring.opening import HEARING, Opening


class Port:
    """Device port."""

    host, port = "127.0.0.1", 8883

    def __init__(self) -> None:
        self.closed = True

    def startListening(self) -> bool:
        self.closed = False
        return True

    def startAccepting(self) -> None: ...


class Broadcast:
    """State of the exchange that reaches all nodes."""

    def __init__(self) -> None:
        self.state = "away"
        self._watchers: list[Callable[[str], object]] = []

    def watch(self, changed: Callable[[str], object]) -> None:
        self._watchers.append(changed)

    def becomes(self, state: str) -> None:
        self.state = state
        for changed in self._watchers:
            changed(state)


class OpeningTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.port, self.broadcast = Port(), Broadcast()
        self.ready = True
        self.events: list[Any] = []
        self.deadline = SimpleNamespace(stopping=False)
        base = SimpleNamespace(
            reactor=self.clock,
            inherited=None,
            deadline=self.deadline,
            emit=self.events.append,
            settings=SimpleNamespace(interface="127.0.0.1"),
        )
        publishing = SimpleNamespace(lines=None, broadcast=self.broadcast)
        self.opening = Opening(*(cast(Any, each) for each in (base, publishing, SimpleNamespace(ports=[self.port]), None)))
        self.opening.follow(lambda: self.ready)

    def opened(self) -> bool:
        return not self.port.closed

    def test_all_there(self) -> None:
        """The port opens once the node has joined, the broker is ready, and the questions of other nodes are heard."""
        self.broadcast.becomes("up")
        self.opening.broker_ready()
        self.assertFalse(self.opened())
        self.opening.node_joined()
        self.assertTrue(self.opened())
        self.assertEqual(len(self.events), 1)

    def test_waits_for_questions(self) -> None:
        """The port waits until the questions of other nodes are heard."""
        self.opening.node_joined()
        self.opening.broker_ready()
        self.clock.advance(HEARING / 2)
        self.assertFalse(self.opened())
        self.broadcast.becomes("up")
        self.assertTrue(self.opened())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_for_long(self) -> None:
        """Devices are served without the exchange that reaches all nodes: if it is refused, or does not come in time."""
        for come in (lambda: self.broadcast.becomes("refused"), lambda: self.clock.advance(HEARING)):
            self.setUp()
            self.opening.node_joined()
            self.assertFalse(self.opened())
            come()
            self.assertTrue(self.opened())

    def test_only_once(self) -> None:
        """A port that was closed and opens again does not wait another time."""
        self.opening.node_joined()
        self.clock.advance(HEARING)
        self.port.closed = True
        self.opening.broker_ready()
        self.assertTrue(self.opened())

    def test_broker_lost_meanwhile(self) -> None:
        """A broker that is lost during the wait keeps the port closed until it is back."""
        self.opening.node_joined()
        self.ready = False
        self.clock.advance(HEARING)
        self.assertFalse(self.opened())
        self.ready = True
        self.opening.broker_ready()
        self.assertTrue(self.opened())

    def test_stop(self) -> None:
        """A node that stops during the wait opens nothing."""
        self.opening.node_joined()
        self.deadline.stopping = True
        self.clock.advance(HEARING)
        self.broadcast.becomes("up")
        self.assertFalse(self.opened())
