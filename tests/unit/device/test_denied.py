"""Tests of the refusal of denied devices, and of the close of connections that a new list denies."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.config.deny_list import DenyList, parse_deny_list
from owsla.device.denied import LOOK, REASON, DeniedDevices
from owsla.device.sliced_check import SLICE


class Certificate:
    def __init__(self, serial: int) -> None:
        self.serial = serial

    def get_serial_number(self) -> int:
        return self.serial

    def to_cryptography(self) -> Any:
        raise ValueError("a test has no real one")


class Connection:
    """Connection of a device; also its transport and its TLS connection."""

    def __init__(self, device_id: str | None = None, serial: int | None = None, host: str | None = "192.0.2.1") -> None:
        self.device_id = device_id
        self.serial = serial
        self.host = host
        self.closing = False
        self.tls = serial is not None
        self.reasons: list[str] = []
        self.failures: list[Failure] = []
        self.looks = 0

    @property
    def transport(self) -> Connection | None:
        return self

    def getPeer(self) -> IPv4Address | UNIXAddress:
        self.looks += 1
        return UNIXAddress(b"/run/owsla.sock") if self.host is None else IPv4Address("TCP", self.host, 1)

    def getHandle(self) -> Connection | None:
        return self if self.tls else None

    def get_peer_certificate(self) -> Certificate | None:
        return None if self.serial is None else Certificate(self.serial)

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


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = SlowClock()
        self.now = 1_700_000_000.0
        self.connections: list[Connection] = []
        self.devices = DeniedDevices(cast(Any, self.clock), lambda: self.now, cast(Any, self.connections))

    def use(self, *lines: str) -> DenyList:
        denied = parse_deny_list("\n".join(lines).encode())
        self.devices.use(denied)
        return denied

    def closed(self) -> list[list[str]]:
        return [connection.reasons for connection in self.connections]


class RefusalTests(Base):
    def refused(self, connection: Connection) -> str | None:
        refusal = self.devices.refusal(connection.device_id, connection)
        return None if refusal is None else refusal.reason

    def test_nobody(self) -> None:
        """Without a list, or with an empty one, nobody is refused."""
        self.assertEqual((self.refused(Connection("a", 1)), self.devices.denies_address("192.0.2.1")), (None, False))
        self.use()
        self.assertEqual((self.refused(Connection("a", 1)), self.devices.refused), (None, 0))

    def test_each_kind(self) -> None:
        """A device is refused for its id, its certificate or its address. The reason says which, and has the certificate."""
        self.use("device meter-1", "serial 01:AB", "address 192.0.2.0/24")
        for connection, reason in (
            (Connection("meter-1", host="10.0.0.1"), "the device is denied: meter-1"),
            (Connection("meter-2", 0x1AB, "10.0.0.1"), "the device's certificate is refused: its serial number is denied"),
            (Connection("meter-2", 0x1AC, "192.0.2.9"), "the device is refused: its address is denied"),
            (Connection("meter-2", 0x1AC, "10.0.0.1"), None),
            (Connection(None, None, "10.0.0.1"), None),
            (Connection(None, None, None), None),
            (Connection("METER-1", host="10.0.0.1"), None),
        ):
            self.assertEqual(self.refused(connection), reason)
        self.assertEqual(self.devices.refused, 3)
        refusal = self.devices.refusal("a", Connection("a", 0x1AB))
        assert refusal is not None
        self.assertEqual((refusal.serial, refusal.claimed_id, refusal.reported), ("01AB", "a", False))

    def test_address(self) -> None:
        """The address of a new connection is looked up in the list in force."""
        self.use("address 192.0.2.0/24 until 2023-11-14T22:13:30Z")
        self.assertEqual((self.devices.denies_address("192.0.2.7"), self.devices.in_force), (True, 1))
        self.now += 10.0
        self.assertEqual((self.devices.denies_address("192.0.2.7"), self.devices.in_force), (False, 0))


class OpenConnectionsTests(Base):
    def test_closed(self) -> None:
        """Connections that a new list denies are closed with that reason, and no others."""
        self.connections += (
            Connection("meter-1", 1), Connection("meter-2", 2), Connection("meter-3", 3), Connection(None, host="10.0.0.1"),
            Connection(None, host=None),
        )  # fmt: skip
        self.use("device meter-1", "serial 03", "address 10.0.0.0/8")
        self.assertEqual(self.closed(), [[REASON], [], [REASON], [REASON], []])
        self.assertEqual((REASON, self.devices.refused), ("denied", 0))

    def test_closing(self) -> None:
        """A connection that closes is left alone."""
        self.connections.append(Connection("meter-1"))
        self.connections[0].closing = True
        self.use("device meter-1")
        self.assertEqual(self.closed(), [[]])

    def test_same_list(self) -> None:
        """A list that is in use already causes no check."""
        self.connections.append(Connection("meter-2"))
        denied = self.use("device meter-1")
        self.devices.use(denied)
        self.assertEqual(self.connections[0].looks, 1)

    def test_slices(self) -> None:
        """A check takes some milliseconds of each turn of the reactor."""
        self.clock.step = SLICE / 4
        self.connections += [Connection("meter-1") for _ in range(20)]
        self.use("device meter-1")
        self.assertEqual(self.closed().count([REASON]), 4)
        self.clock.advance(0)
        self.assertEqual((self.closed(), self.clock.delays), ([[REASON]] * 20, [0] * 4))

    def test_next_list(self) -> None:
        """Another list ends a check that is in progress, and begins another one. So does none."""
        self.clock.step = SLICE
        self.connections += [Connection(f"meter-{number}") for number in range(4)]
        self.use("device meter-3")
        self.use("device meter-2")
        self.clock.pump([0] * 9)
        self.assertEqual(self.closed(), [[], [], [REASON], []])
        self.use("device meter-1")
        self.devices.use(DenyList())
        self.assertEqual((self.clock.getDelayedCalls(), self.closed()), ([], [[], [], [REASON], []]))
        self.devices.stop()

    def test_failure(self) -> None:
        """An exception about one connection closes that one, and the others are checked."""
        self.connections += Connection("meter-2"), Connection("meter-1")
        self.patch(self.connections[0], "getPeer", lambda: 1 / 0)
        self.use("device meter-1")
        self.assertEqual([len(each.failures) for each in self.connections], [1, 0])
        self.assertEqual(self.closed()[1], [REASON])


class WallClockTests(Base):
    def tick(self) -> None:
        self.clock.advance(LOOK)
        self.devices.tick(self.clock.seconds())

    def test_set_back(self) -> None:
        """When the wall clock is set back, a device whose entry is in force again is closed."""
        self.connections += Connection("meter-1"), Connection("meter-2")
        self.use("device meter-1 until 2023-11-14T22:13:00Z", "device meter-2 until 2023-11-14T22:00:00Z")
        self.tick()
        self.assertEqual(self.closed(), [[], []])
        self.now -= 60.0
        self.tick()
        self.assertEqual(self.closed(), [[REASON], []])

    def test_goes_on(self) -> None:
        """While the wall clock goes on, or is set forward, no connection is looked at."""
        self.use("device meter-1 until 2023-11-14T22:14:00Z")
        self.connections.append(Connection("meter-2"))
        for step in (0.0, 1.0, 3600.0, 1.0):
            self.now += step
            self.tick()
        self.assertEqual(self.connections[0].looks, 0)

    def test_one_look(self) -> None:
        """The clock is looked at once a second."""
        self.use("device meter-1 until 2023-11-14T22:13:00Z")
        self.connections.append(Connection("meter-1"))
        self.tick()
        self.now -= 60.0
        self.devices.tick(self.clock.seconds() + LOOK / 2)
        self.assertEqual(self.closed(), [[]])
        self.devices.tick(self.clock.seconds() + LOOK)
        self.assertEqual(self.closed(), [[REASON]])
