"""Tests of devices that are refused when they are identified: by the deny list, or because they connect too often."""

from __future__ import annotations

from owsla.config.deny_list import parse_deny_list
from owsla.device.flaps import HELD_OFF
from owsla.events import DeviceConnected, DeviceDisconnected, DeviceHeldOff, HandshakeFailed

from ._sockets import Client
from .test_port import Base


class RefusedTests(Base):
    def refused(self) -> None:
        """Connect a device, and wait until its connection is closed."""
        client = Client(self.connect())
        before = len(self.registry)
        self.loop.until(lambda: client.ended, client.step)
        self.loop.settle(client.step)
        self.assertEqual(len(self.registry), before)

    def test_denied(self) -> None:
        """A denied device is refused with an event, and is never connected."""
        listener = self.listen()
        self.factory.denied.use(parse_deny_list(b"device somebody"))
        self.refused()
        (event,) = self.of_type(HandshakeFailed)
        self.assertEqual(event.reason, "TLS: the device is denied: somebody")
        self.assertEqual((listener.failed_handshakes, listener.handshakes, self.factory.denied.refused), (1, 0, 1))
        self.assertEqual(self.of_type(DeviceConnected), [])

    def test_address_denied_meanwhile(self) -> None:
        """A connection that was accepted before its address was denied is refused when its handshake is complete."""
        self.listen()
        client = Client(self.connect())
        self.factory.denied.use(parse_deny_list(b"address 127.0.0.0/8"))
        self.loop.until(lambda: self.of_type(HandshakeFailed), client.step)
        self.assertEqual(self.of_type(HandshakeFailed)[0].reason, "TLS: the device is refused: its address is denied")

    def test_denied_later(self) -> None:
        """A device that is connected is closed when a list denies it."""
        self.listen()
        client = self.device()
        self.factory.denied.use(parse_deny_list(b"device somebody"))
        self.loop.until(lambda: client.ended, client.step)
        client.socket.close()
        self.loop.settle()
        self.assertEqual([event.reason for event in self.of_type(DeviceDisconnected)], ["denied"])

    def test_held_off(self) -> None:
        """A device that connects too often is held off with one event, and no failed handshake. Its connections stay."""
        listener = self.listen()
        self.factory.devices.flaps.configure(2)
        for _ in range(2):
            self.device()
        for _ in range(3):
            self.refused()
        (event,) = self.of_type(DeviceHeldOff)
        self.assertEqual((event.device_id, event.connections, event.seconds, event.door), ("somebody", 3, HELD_OFF, "default"))
        self.assertRegex(event.peer, r"^127\.0\.0\.1:\d+$")
        self.assertEqual((listener.failed_handshakes, listener.handshakes, len(self.registry)), (0, 2, 2))
        self.assertEqual((self.of_type(HandshakeFailed), self.factory.devices.refused), ([], 3))
        self.later(int(HELD_OFF))
        self.device()
