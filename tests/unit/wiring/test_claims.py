"""Tests of claims between the devices of a node and the role that reaches all nodes."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from owsla.wiring.claims import announce_again, announce_claims

from ..device._fakes import World


class Broadcast:
    """Role that reaches all nodes."""

    def __init__(self) -> None:
        self.state = "up"
        self.sent: list[str] = []
        """Connection ids of the claims, in their order."""

    def watch(self, changed: Callable[[str], None]) -> None:
        self._changed = changed

    def changed(self, state: str) -> None:
        self.state = state
        self._changed(state)

    def claim(self, claims: bytes) -> bool:
        self.sent += [claim["connection_id"] for claim in json.loads(claims)]
        return True


class ClaimsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(replace=True)
        self.broadcast = Broadcast()
        self.devices = cast(Any, SimpleNamespace(services=self.world.services))
        announce_claims(self.devices, cast(Any, self.broadcast))

    def connect(self) -> str:
        connection, _ = self.world.connect(device_id=f"d{len(self.world.registry)}")
        return connection.connection_id.decode()

    def test_identified(self) -> None:
        """A connection is announced within a tenth of a second, once."""
        connection_id = self.connect()
        self.world.connect()
        self.world.later(1.0)
        self.assertEqual(self.broadcast.sent, [connection_id])

    def test_up_again(self) -> None:
        """When notices go and arrive again, all connections are announced again, and not before."""
        ids = [self.connect(), self.connect()]
        self.world.later(1.0)
        self.broadcast.sent = []
        for state in ("blocked", "away", "refused"):
            self.broadcast.changed(state)
        self.world.later(1.0)
        self.assertEqual(self.broadcast.sent, [])
        self.broadcast.changed("up")
        self.world.later(1.0)
        self.assertEqual(sorted(self.broadcast.sent), sorted(ids))

    def test_blocked(self) -> None:
        """After an alarm of the broker only those are announced that were identified meanwhile and are still connected: it may
        be short of memory, and all claims of all nodes at once would use much of it.
        """
        self.connect()
        self.world.later(1.0)
        self.broadcast.sent = []
        self.broadcast.changed("blocked")
        gone, _ = self.world.connect(device_id="gone")
        late = self.connect()
        self.world.later(1.0)
        gone.close("it is")
        self.world.registry.remove(gone.connection_id)
        self.world.services.devices.remove(gone)
        self.world.later(1.0)
        self.assertEqual(self.broadcast.sent, [])
        self.broadcast.changed("up")
        self.world.later(1.0)
        self.assertEqual(self.broadcast.sent, [late])

    def test_taken_for_dead(self) -> None:
        """A node that was taken for dead announces its connections again, to back ends too where they hear of presence."""
        connection_id = self.connect()
        self.world.later(1.0)
        told: list[bool] = []
        announce_again(self.devices, cast(Any, SimpleNamespace(resync=lambda: told.append(True))))
        announce_again(self.devices, None)
        self.world.later(1.0)
        self.assertEqual((self.broadcast.sent, told), ([connection_id] * 2, [True]))
