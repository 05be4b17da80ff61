"""Tests of the index of connections by device id."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.claims import Claim

from ._fakes import World


class IndexTests(SynchronousTestCase):
    """The address of a device is its newest open connection."""

    def setUp(self) -> None:
        self.world = World()
        self.devices = self.world.services.devices

    def test_find(self) -> None:
        """A device has the address of its connection while that is open; an unknown one, and one without an id, have none."""
        self.assertIsNone(self.devices.find("d1"))
        first, _ = self.world.connect(device_id="d1")
        self.world.connect()
        self.assertIs(self.devices.find("d1"), first)
        self.assertEqual((list(self.devices), len(self.devices)), (["d1"], 1))
        self.world.end(first)
        self.assertIsNone(self.devices.find("d1"))
        self.assertEqual((list(self.devices), self.devices._earlier), ([], {}))

    def test_newest_first(self) -> None:
        """When the newest of several connections closes, the one before is the address. The order in which others close does
        not matter.
        """
        connections = [self.world.connect(device_id="d1")[0] for _ in range(5)]
        self.assertIs(self.devices.find("d1"), connections[4])
        self.world.end(connections[2])
        self.world.end(connections[0])
        self.assertIs(self.devices.find("d1"), connections[4])
        self.world.end(connections[4])
        self.assertIs(self.devices.find("d1"), connections[3])
        self.world.end(connections[3])
        self.assertIs(self.devices.find("d1"), connections[1])
        self.assertEqual(self.devices._earlier, {})
        self.world.end(connections[1])
        self.assertEqual((list(self.devices), self.devices._earlier), ([], {}))

    def test_closing(self) -> None:
        """A connection that is being closed is no address: messages would be recorded."""
        first, second = (self.world.connect(device_id="d1")[0] for _ in range(2))
        second.close("enough")
        self.assertIs(self.devices.find("d1"), first)
        first.close("enough")
        self.assertIsNone(self.devices.find("d1"))
        self.assertIsNone(self.devices.claim_of("d1"))

    def test_claim_of(self) -> None:
        """The claim of a device has the time of its identification by both clocks, and its door."""
        self.world.clock.advance(5.0)
        connection, _ = self.world.connect(device_id="d1", factory=self.world.door("meters"))
        self.world.clock.advance(2.5)
        self.assertIsNone(self.devices.claim_of("d2"))
        claim = Claim("d1", connection.connection_id.decode(), 1_000_005_000, 2500, "meters")
        self.assertEqual(self.devices.claim_of("d1"), claim)

    def test_since(self) -> None:
        """Of two connections within a millisecond, or after the clock was set back, the later one has the greater time."""
        since = []
        for _ in range(3):
            connection, _ = self.world.connect(device_id="d1")
            since.append(connection.since)
            self.world.epoch -= 1000.0
        self.assertEqual(since, [1_000_000_000, 1_000_000_001, 1_000_000_002])
