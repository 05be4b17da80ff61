"""The messages that `owsla send` writes, and the reports that it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.broker.headers import details, read
from owsla.broker.message_properties import report
from owsla.cli import _send
from owsla.cli._running import Session
from owsla.cli._send import Send, SendOptions, lines_of, properties, read_report

from ..broker.fakes import BrokerTestCase, Result, Server, deliver, message

CID = b"01234567-89ab-8cde-8f01-23456789abcd"
ADDRESS = {"connection_id": CID.decode()}


class PropertiesTests(SynchronousTestCase):
    """Properties of a message to a device, as the gateway reads them."""

    def test_plain(self) -> None:
        """Without options the properties name a connection and nothing else that the gateway needs."""
        self.assertEqual(read(wire.header_payload(1, properties(ADDRESS))), (CID, None, False))

    def test_options(self) -> None:
        """The gateway reads every option."""
        header = wire.header_payload(
            1, properties(ADDRESS, seq=4, close=True, expires_at=1500, reply_to="q", correlation_id="1")
        )
        self.assertEqual(read(header), (CID, 4, True))
        address = details(header)
        self.assertEqual(
            (address.close, address.expires_at, address.reply_to, address.correlation_id), (True, 1500, b"q", b"\x011")
        )


class ReportTests(SynchronousTestCase):
    """Delivery reports."""

    def test_as_the_gateway_sends_it(self) -> None:
        """A report is read as the gateway writes it."""
        header = wire.header_payload(0, report(CID, b"\x0217", "delivered", "owsla"))
        found = read_report(header)
        assert found is not None
        self.assertEqual((found.correlation_id, found.outcome, found.text), ("17", "delivered", "delivered"))

    def test_to_a_device(self) -> None:
        """A report of a message to a device shows the connection that it went to, if there was one."""
        for connection_id, text in ((CID.decode(), f"delivered {CID.decode()}"), ("", "delivered")):
            headers = {"connection_id": connection_id, "device_id": "d", "owsla_report": "delivered"}
            found = read_report(wire.header_payload(0, wire.encode_properties({"headers": headers})))
            assert found is not None
            self.assertEqual(found.text, text)

    def test_to_many_devices(self) -> None:
        """A report of a message to many devices shows the node and its counts."""
        headers = {"owsla_report": "fanned-out", "owsla_node": "01234567", "owsla_devices": 12, "owsla_missed": 3}
        found = read_report(wire.header_payload(0, wire.encode_properties({"headers": headers})))
        assert found is not None
        self.assertEqual(found.text, "fanned-out on node 01234567: 12 handed over, 3 missed")

    def test_none(self) -> None:
        """Other messages are not reports."""
        self.assertIsNone(read_report(wire.header_payload(0, wire.encode_properties({}))))
        self.assertIsNone(read_report(b"\0" * 12))


class LinesTests(SynchronousTestCase):
    """Standard input."""

    def test_ends(self) -> None:
        """A line ends with a newline, with or without a carriage return before it; the last line may have no end."""
        self.assertEqual(list(lines_of(iter([b"a\nb\r", b"\n\n", b"c\rd"]))), [b"a", b"b", b"", b"c\rd"])
        self.assertEqual(list(lines_of(iter([]))), [])
        self.assertEqual(list(lines_of(iter([b"\n"]))), [b""])

    @given(st.lists(st.binary(max_size=8)))
    def test_pieces(self, chunks: list[bytes]) -> None:
        """The boundaries of chunks make no difference."""
        self.assertEqual(list(lines_of(iter(chunks))), list(lines_of(iter([b"".join(chunks)]))))


class _Output:
    """Standard output that keeps everything."""

    written = b""

    def __init__(self, reactor: Any, gone: Callable[[str], None]) -> None: ...

    def write(self, data: bytes, then: Callable[[], None]) -> None:
        self.written += data
        then()


class _Ended(Session):
    """Session that keeps its end."""

    end: tuple[int, str] | None = None

    def finish(self, status: int, text: str = "") -> None:
        self.end = self.end or (status, text)


class ManyTests(BrokerTestCase):
    """Reports of a line for many devices, with a broker in memory."""

    def setUp(self) -> None:
        self.patch(_send, "Output", _Output)
        self.server = Server(heartbeat=60_000)
        self.session = _Ended(self.server.clock, "send", patient=False)
        options = SendOptions("to_device", {"owsla_to": "all"}, b"x", expires=8.0, report=True, timeout=5.0)
        now = self.server.clock.seconds
        self.role: Any = Send(self.server.clock, self.server.turn, self.session, options=options, now=now)
        self.server.ready()
        Result(self.role.up(self.server.client))
        self.server.settle()

    def report(self, outcome: str, **headers: Any) -> None:
        """Send the report of a node."""
        header = message(b"", {"owsla_report": outcome, **headers}, correlation_id="1")
        self.server.raw(deliver(1, 1, header, b""))

    def test_until_no_node_reports(self) -> None:
        """It shows the report of each node, and ends with status 0 when none has reported for `--timeout`."""
        (published,) = self.server.take()
        self.assertEqual(published.headers, {"owsla_to": "all", "expires_at": 8000})
        self.report("fanned-out", owsla_node="a", owsla_devices=1, owsla_missed=0)
        self.server.ack(1, 1)
        self.server.clock.advance(2)
        self.report("fanned-out", owsla_node="b", owsla_devices=2, owsla_missed=1)
        self.server.clock.advance(4.9)
        self.assertIsNone(self.session.end)
        self.server.clock.advance(0.2)
        self.assertEqual(self.session.end, (0, ""))
        self.assertEqual(
            self.role._output.written,
            b"fanned-out on node a: 1 handed over, 0 missed\nfanned-out on node b: 2 handed over, 1 missed\n",
        )

    def test_until_it_has_expired(self) -> None:
        """It ends a second after the expiry. The status is 1 if a node did not serve all devices in time."""
        self.server.ack(1, 1)
        self.server.clock.advance(4)
        self.report("fanned-out", owsla_node="a", owsla_devices=1, owsla_missed=0)
        self.server.clock.advance(4.5)
        self.report("expired", owsla_node="b", owsla_devices=3, owsla_missed=7)
        self.assertIn(b"expired on node b: 3 handed over, 7 missed", self.role._output.written)
        self.assertIsNone(self.session.end)
        self.server.clock.advance(0.6)
        self.assertEqual(self.session.end, (1, ""))

    def test_one_node_fails(self) -> None:
        """The report of a node that could not serve its devices is shown like others, and the status is 1."""
        self.server.ack(1, 1)
        self.report("busy", owsla_node="a")
        self.report("fanned-out", owsla_node="b", owsla_devices=1, owsla_missed=0)
        self.server.clock.advance(5)
        self.assertEqual(self.session.end, (1, ""))
        self.assertEqual(self.role._output.written, b"busy on node a\nfanned-out on node b: 1 handed over, 0 missed\n")

    def test_nobody_is_reached(self) -> None:
        """If no node has such a device, that is said, and the status is 1."""
        self.server.ack(1, 1)
        self.report("fanned-out", owsla_node="a", owsla_devices=0, owsla_missed=0)
        self.report("fanned-out", owsla_node="b", owsla_devices=0, owsla_missed=0)
        self.server.clock.advance(5.1)
        self.assertEqual(self.session.end, (1, "no device was reached: none that is connected is selected by --to"))

    def test_refused(self) -> None:
        """A reason why no node takes it ends the wait."""
        self.server.ack(1, 1)
        self.report("bad-selector")
        self.assertEqual((self.session.end, self.role._output.written), ((1, ""), b"bad-selector\n"))

    def test_silence(self) -> None:
        """Without any report the status is 1."""
        self.server.ack(1, 1)
        self.server.clock.advance(5)
        self.assertEqual(self.session.end, (1, "there is no delivery report: is the gateway running, on this broker?"))
