"""Tests of the target of a trace: by which names it is found, and which events concern it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._trace_target import EVENTS_OF_DEVICES, TraceTarget
from owsla.events import (
    AddressDenied,
    BrokerLost,
    DeviceConnected,
    DeviceContested,
    DeviceDisconnected,
    DeviceHeldOff,
    DeviceKicked,
    DeviceReplaced,
    Event,
    HandshakeFailed,
    Listening,
    LoginFailed,
    NodeLost,
    NodeStarted,
    TraceStarted,
    TurnedAway,
    Undeliverable,
)

ID = "01234567-89ab-8cde-8f01-23456789abcd"
OTHER = "01234567-89ab-8cde-8f01-23456789abce"


class ConnectionTests(SynchronousTestCase):
    def test_names(self) -> None:
        """A connection is found by its id in any case, its device id, or its address with or without the port."""
        cases = (
            (ID, True), (ID.upper(), True), (OTHER, False), ("d1", True), ("D1", False), ("d", False), ("", False),
            ("192.0.2.1", True), ("192.0.2.1:1234", True), ("192.0.2.1:123", False), ("192.0.2.11", False),
            ("192.0.2.", False), ("::ffff:192.0.2.1", True),
        )  # fmt: skip
        for text, expected in cases:
            self.assertIs(TraceTarget(text).is_connection(ID, "d1", "192.0.2.1:1234"), expected, text)

    def test_ipv6(self) -> None:
        """An address of IPv6 is found in any spelling, and with a port in brackets."""
        peer = "[2001:db8::1]:1234"
        for text, expected in (
            ("2001:db8::1", True), ("2001:0DB8:0::1", True), ("[2001:db8::1]:1234", True), ("2001:db8::", False),
            ("[2001:db8::1]:1", False), ("2001:db8::11", False),
        ):  # fmt: skip
            self.assertIs(TraceTarget(text).is_connection(ID, None, peer), expected, text)

    def test_device_id_like_an_address(self) -> None:
        """A device id may look like an address, or like the id of a connection: both are found."""
        target = TraceTarget("192.0.2.1")
        self.assertTrue(target.is_connection(ID, "192.0.2.1", "198.51.100.1:5"))
        self.assertTrue(target.is_connection(ID, "d1", "192.0.2.1:5"))
        self.assertTrue(TraceTarget(OTHER).is_connection(ID, OTHER, None))

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """Any text is a target, and at least that of the device with this id."""
        target = TraceTarget(text)
        self.assertTrue(target.is_connection(ID, text, "192.0.2.1:1"))
        self.assertTrue(target.concerns(Undeliverable("expired", None, text)))


class EventTests(SynchronousTestCase):
    def check(self, event: Event, concerned: tuple[str, ...], others: tuple[str, ...] = ("d2", OTHER, "192.0.2.2")) -> None:
        self.assertIn(type(event), EVENTS_OF_DEVICES)
        for text in concerned:
            self.assertTrue(TraceTarget(text).concerns(event), text)
        for text in others:
            self.assertFalse(TraceTarget(text).concerns(event), text)

    def test_devices(self) -> None:
        """An event concerns the connection, the device and the addresses that it names."""
        self.check(DeviceConnected(ID, "d1", "192.0.2.1:5", "TLSv1.3"), (ID, "d1", "192.0.2.1", "192.0.2.1:5"))
        self.check(DeviceDisconnected(ID, None, "192.0.2.1:5", "closed", 0, 0, 1.0, 0), (ID, "192.0.2.1"))
        self.check(DeviceReplaced(OTHER, "d1", ID), (ID, OTHER, "d1"), ("d2",))
        self.check(DeviceContested("d1", 5, ("192.0.2.1:5", "node 01234567")), ("d1", "192.0.2.1"))
        self.check(LoginFailed(ID, None, "d1", "192.0.2.1:5", "wrong", 0), (ID, "d1", "192.0.2.1"))
        self.check(DeviceHeldOff("d1", 9, 60.0, "192.0.2.1:5"), ("d1", "192.0.2.1"))
        self.check(Undeliverable("unknown-device", None, "d1"), ("d1",))
        self.check(DeviceKicked(ID, "d1", "user root (uid 0)"), (ID, "d1"))

    def test_refused_addresses(self) -> None:
        """An event about refused connections concerns the address that it names, or the addresses in its network."""
        self.check(AddressDenied(3, "192.0.2.1"), ("192.0.2.1",))
        self.check(TurnedAway(3, 5, "2001:db8:1:2::/64"), ("2001:db8:1:2::7",), ("2001:db8:1:3::7", "d1"))

    def test_failed_handshakes(self) -> None:
        """A failed handshake concerns the address, and the device id in the certificate, which may not be in its subject."""
        event = HandshakeFailed("192.0.2.1:5", "expired", "CN=d2,O=Example", "0A", claimed_id="urn:d1")
        self.check(event, ("192.0.2.1", "urn:d1"), ("d1", "d2", "CN=d2", "Example", "192.0.2.2"))

    def test_other_events(self) -> None:
        """Events about the broker, nodes and their ports, and traces themselves concern no device: no trace gets them."""
        for kind in (BrokerLost, Listening, NodeLost, NodeStarted, TraceStarted):
            self.assertNotIn(kind, EVENTS_OF_DEVICES)
