"""The messages that `owsla send` writes, and the reports that it reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.broker.headers import details, read
from owsla.broker.message_properties import report
from owsla.cli._send import lines_of, properties, read_report

CID = b"01234567-89ab-8cde-8f01-23456789abcd"


class PropertiesTests(SynchronousTestCase):
    """Properties of a message to a device, as the gateway reads them."""

    def test_plain(self) -> None:
        """Without options the properties name a connection and nothing else that the gateway needs."""
        self.assertEqual(read(wire.header_payload(1, properties(CID))), (CID, None, False))

    def test_options(self) -> None:
        """The gateway reads every option."""
        header = wire.header_payload(1, properties(CID, seq=4, close=True, expires_at=1500, reply_to="q", correlation_id="1"))
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
        self.assertEqual(read_report(header), ("17", "delivered"))

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
