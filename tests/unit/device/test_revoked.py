"""Closing of the connections of devices whose certificate was revoked after they connected."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.device.revoked import REASON, RevokedDevices
from owsla.device.sliced_check import SLICE
from owsla.tls.revocation import RevocationLists

TIMEOUT = 15.0


class Lists:
    """Revocation lists, in which a certificate is a text."""

    def __init__(self, *revoked: str) -> None:
        self.revoked = revoked

    def same_as(self, other: Lists | None) -> bool:
        return other is not None and other.revoked == self.revoked

    def revoke(self, chain: list[str]) -> bool:
        return any(each in self.revoked for each in chain)


class Connection:
    """Connection of a device; also its transport and its TLS connection."""

    def __init__(self, *chain: str, opened: float = 0.0) -> None:
        self.chain = chain
        self.opened: float | None = opened
        self.closing = False
        self.reasons: list[str] = []
        self.failures: list[Failure] = []
        self.tls = True
        self.looks = 0

    @property
    def transport(self) -> Connection | None:
        return self

    def getHandle(self) -> Connection | None:
        return self if self.tls else None

    def get_verified_chain(self) -> tuple[str, ...] | None:
        self.looks += 1
        return self.chain or None

    def reject(self, reason: str) -> None:
        self.closing = True
        self.reasons.append(reason)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


class SlowClock(Clock):
    """Clock by which each look at the time takes a while."""

    step = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.delays: list[float] = []

    def callLater(self, delay: float, *call: Any, **arguments: Any) -> Any:
        self.delays.append(delay)
        return super().callLater(delay, *call, **arguments)

    def seconds(self) -> float:
        self.rightNow += self.step
        return float(self.rightNow)


class RevokedDevicesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SlowClock()
        self.connections: list[Connection] = []
        self.devices = RevokedDevices(cast(Any, self.clock), cast(Any, self.connections), None)

    def check(self, *revoked: str) -> None:
        self.devices.check(cast(RevocationLists, Lists(*revoked)), TIMEOUT)

    def closed(self) -> list[list[str]]:
        return [connection.reasons for connection in self.connections]

    def test_closed(self) -> None:
        """Devices with a revoked certificate or authority are closed with that reason, and no others."""
        for chain in (("bad", "root"), ("good", "root"), ("other", "bad", "root"), ()):
            self.connections.append(Connection(*chain))
        self.check("bad")
        self.assertEqual(self.closed(), [[REASON], [], [REASON], []])
        self.assertEqual(REASON, "certificate revoked")

    def test_closing(self) -> None:
        """A connection that closes, or has no TLS, is left alone."""
        self.connections += Connection("bad"), Connection("bad")
        self.connections[0].closing = True
        self.connections[1].tls = False
        self.check("bad")
        self.assertEqual(self.closed(), [[], []])

    def test_same_lists(self) -> None:
        """Lists that are in use already cause no check."""
        self.connections.append(Connection("good"))
        self.check("bad")
        self.check("bad")
        self.assertEqual(self.connections[0].looks, 1)
        self.check("bad", "worse")
        self.assertEqual(self.connections[0].looks, 2)
        self.devices.check(None, TIMEOUT)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.check("bad", "worse")
        self.assertEqual(self.connections[0].looks, 3)

    def test_at_the_start(self) -> None:
        """The lists of the start cause no check: every handshake was under them."""
        devices = RevokedDevices(cast(Any, self.clock), cast(Any, self.connections), cast(Any, Lists("bad")))
        self.connections.append(Connection("bad"))
        devices.check(cast(Any, Lists("bad")), TIMEOUT)
        self.assertEqual((self.closed(), self.clock.getDelayedCalls()), ([[]], []))

    def test_slices(self) -> None:
        """A check takes some milliseconds of each turn of the reactor."""
        self.clock.step = SLICE / 4
        self.connections += [Connection("bad") for _ in range(20)]
        self.check("bad")
        self.assertEqual(self.closed().count([REASON]), 4)
        self.clock.advance(0)
        self.assertEqual(self.closed(), [[REASON]] * 20)
        self.assertEqual(self.clock.delays, [0, 0, 0, 0, TIMEOUT])

    def test_failure(self) -> None:
        """An exception about one connection closes that one, and the others are checked."""
        self.connections += Connection("bad"), Connection("bad")
        self.patch(self.connections[0], "getHandle", lambda: 1 / 0)
        self.check("bad")
        self.assertEqual([len(each.failures) for each in self.connections], [1, 0])
        self.assertEqual(self.closed()[1], [REASON])

    def test_handshakes_that_had_begun(self) -> None:
        """A handshake that began before the lists came may end after the check: such connections are checked later."""
        self.clock.advance(100.0)
        self.connections.append(Connection("good", opened=5.0))
        self.check("bad")
        self.connections += Connection("bad", opened=105.0), Connection("good", opened=110.0)
        self.clock.advance(TIMEOUT)
        self.assertEqual(self.closed(), [[], [REASON], []])
        self.assertEqual([each.looks for each in self.connections], [1, 1, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_next_lists(self) -> None:
        """Other lists end a check that is in progress, and begin another one."""
        self.clock.step = SLICE
        self.connections += Connection("bad"), Connection("worse")
        self.check("bad")
        self.check("worse")
        self.clock.pump([0] * 5)
        self.assertEqual(self.closed(), [[REASON], [REASON]])
        self.devices.stop()
        self.devices.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
