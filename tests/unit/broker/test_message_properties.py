"""What is passed on: everything as it was, but for what RabbitMQ would act on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.header import ContentHeader
from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import WireError
from owsla.broker import headers as delivery
from owsla.broker.message_properties import (
    BETWEEN_NODES,
    GROUP_HEADER,
    NOTE_HEADER,
    REDELIVERED_HEADER,
    minimal,
    reduced,
    relayed,
    report,
)

from ..amqp.values import RAW_ENTRIES, RAW_PROPERTIES, RAW_VALUES, hostile, raw_properties, raw_table

MOVED = {b"CC": b"owsla_cc", b"BCC": b"owsla_bcc"}
EXTRA = {"owsla_reason": "late", "owsla_node": "0123abcd"}

ENTRIES = st.lists(
    st.tuples(st.sampled_from([b"CC", b"BCC", b"cc", b"owsla_reason", b"owsla_user_id", b"connection_id"]), RAW_VALUES),
    max_size=5,
    unique_by=lambda entry: entry[0],
)


class PassedOnTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=200)
    @given(RAW_PROPERTIES, ENTRIES | RAW_ENTRIES)
    def test_plain(self, values: dict[str, bytes], entries: list[tuple[bytes, bytes]]) -> None:
        """A message that counts as plain, and has no user, is relayed byte for byte: it need not be taken apart."""
        values["headers"] = raw_table([(b"connection_id", b"S\0\0\0\1x"), *entries])
        properties = raw_properties(values)
        if not delivery.read(wire.header_payload(0, properties))[2] and "user_id" not in values:
            self.assertEqual(relayed(properties, {}), properties)

    def test_not_plain(self) -> None:
        """A message with a header that relayed messages never have counts as one with more than a plain one."""
        for name in (*BETWEEN_NODES, "CC", "BCC"):
            properties = wire.encode_properties({"headers": {"connection_id": "x", name: "y"}})
            self.assertTrue(delivery.read(wire.header_payload(0, properties))[2], name)

    @settings(deadline=None, max_examples=100)
    @given(RAW_PROPERTIES, ENTRIES | RAW_ENTRIES, st.sampled_from([{}, EXTRA]))
    def test_nothing_else_changes(
        self, values: dict[str, bytes], entries: list[tuple[bytes, bytes]], extra: dict[str, str]
    ) -> None:
        """Every property and header is byte for byte what it was, in its order; only those that RabbitMQ acts on move to
        headers of ours, and `extra` replaces headers of its names.
        """
        values["headers"] = raw_table(entries)
        got = wire.split_properties(relayed(raw_properties(values), extra))
        headers = wire.split_table(got.pop("headers"))
        self.assertEqual(
            got, {name: raw for name, raw in values.items() if name not in ("headers", "user_id", "expiration")}
        )
        replaced = {name.encode() for name in extra}
        for name in ("user_id", "expiration"):
            if name in values:
                replaced.add(b"owsla_" + name.encode())
        expected = [(MOVED.get(key, key), raw) for key, raw in entries if key not in replaced]
        for name in ("user_id", "expiration"):
            if name in values:
                expected.append((b"owsla_" + name.encode(), b"S" + wire.long_string(values[name][1:])))
        expected += [(name.encode(), b"S" + wire.long_string(value)) for name, value in extra.items()]
        self.assertEqual(headers, expected)

    def test_pamqp_reads_it(self) -> None:
        """What is passed on is a message to pamqp, with the reason in it and nothing for RabbitMQ to act on."""
        properties = wire.encode_properties(
            {"headers": {"CC": ["a"], "n": 1}, "user_id": "me", "expiration": "5", "message_id": "m", "type": "t"}
        )
        header = ContentHeader()
        header.unmarshal(wire.header_payload(0, relayed(properties, EXTRA)))
        self.assertEqual(
            header.properties.headers,
            {"owsla_cc": ["a"], "n": 1, "owsla_user_id": "me", "owsla_expiration": "5", **EXTRA},
        )
        self.assertEqual((header.properties.message_id, header.properties.message_type), ("m", "t"))
        self.assertIsNone(header.properties.user_id)
        self.assertIsNone(header.properties.expiration)

    def test_no_header_twice(self) -> None:
        """What a record says of itself replaces headers of the same names: none is there twice."""
        properties = wire.encode_properties(
            {"headers": {"owsla_reason": "old", "owsla_user_id": "old", "owsla_node": 1, "n": 1}, "user_id": "me"}
        )
        headers = wire.split_table(wire.split_properties(relayed(properties, EXTRA))["headers"])
        self.assertEqual([key for key, _ in headers], [b"n", b"owsla_user_id", b"owsla_reason", b"owsla_node"])

    def test_user_of_a_message_for_many(self) -> None:
        """The copy that a node makes of a message for many has the user of the node, and that of the back end in a header, if
        there was one. A record has that one."""
        for before in ({"user_id": "backend"}, {}):
            copy = wire.decode_properties(
                relayed(wire.encode_properties({"headers": {"owsla_to": "all"}, **before}), {GROUP_HEADER: "some-group"})
            )
            copied = wire.encode_properties({**copy, "user_id": "node"})
            record = wire.decode_properties(relayed(copied, EXTRA))
            self.assertEqual(record["headers"].get("owsla_user_id"), before.get("user_id"))
            self.assertNotIn("user_id", record)

    def test_without_headers(self) -> None:
        """A message that had no headers gets those of the record."""
        self.assertEqual(wire.decode_properties(relayed(b"\0\0", EXTRA)), {"headers": EXTRA})

    def test_twice(self) -> None:
        """A forward that is undeliverable at its node keeps what the first node moved, and has the last reason alone."""
        first = relayed(wire.encode_properties({"user_id": "me", "headers": {"CC": "a"}}), {"owsla_reason": "a"})
        self.assertEqual(
            wire.decode_properties(relayed(first, EXTRA))["headers"],
            {"owsla_cc": "a", "owsla_user_id": "me", **EXTRA},
        )

    @settings(deadline=None, max_examples=100)
    @given(hostile(RAW_PROPERTIES.map(raw_properties)))
    def test_hostile_properties(self, data: bytes) -> None:
        """Whatever the bytes, they are passed on or raise `WireError`."""
        try:
            wire.split_properties(relayed(data, EXTRA))
        except WireError:
            return


class CutDownTests(SynchronousTestCase):
    def test_what_is_kept(self) -> None:
        """Of too many headers those are kept that Owsla reads, byte for byte, and a note says so; all properties are."""
        values = {"connection_id": "some-id", "to_device_seq": 7, "expires_at": 5, "owsla_close": True, **EXTRA}
        properties = {"message_id": "m", "reply_to": "answers", "correlation_id": "c", "delivery_mode": 2}
        raw = wire.encode_properties({"headers": {"x-death": ["x" * 200_000], **values}, **properties})
        got = wire.decode_properties(reduced(raw))
        note = got["headers"].pop(NOTE_HEADER)
        self.assertIn("200", note)
        self.assertEqual(got, {"headers": values, **properties})

    def test_the_smallest_frame(self) -> None:
        """However long the values are, and however often they come, what is left fits into AMQP's smallest frame."""
        names = [name for name, (_, kind) in wire.PROPERTIES.items() if kind == "shortstr"]
        keys = ["connection_id", "device_id", "owsla_to", "to_device_seq", "expires_at", "owsla_close", "owsla_user_id"]
        keys += ["owsla_expiration", "traceparent", "tracestate", *BETWEEN_NODES, REDELIVERED_HEADER]
        sizes = {"owsla_to": 255, "traceparent": 64, "tracestate": 128}  # longer ones are left out
        table = [(key.encode(), b"S" + wire.long_string("x" * sizes.get(key, 1000))) for key in keys for _ in range(100)]
        values = {name: wire.short_string("x" * 255) for name in names} | {"headers": wire.join_table(table)}
        passed = relayed(wire.join_properties(values), EXTRA)
        self.assertLessEqual(len(reduced(passed)), wire.FRAME_MIN_SIZE - wire.FRAME_OVERHEAD - 12)

    def test_long_values(self) -> None:
        """A long string is cut off, and a long value of another type is left out."""
        headers = {"connection_id": "x" * 300, "to_device_seq": b"1" * 300, "expires_at": [1] * 300}
        got = wire.decode_properties(reduced(wire.encode_properties({"headers": headers})))["headers"]
        self.assertEqual((got["connection_id"], got["to_device_seq"]), ("x" * 255, b"1" * 40))
        self.assertNotIn("expires_at", got)

    def test_selector(self) -> None:
        """A selector is kept whole or not at all: a part of a prefix would select other devices."""
        for size in (255, 256):
            got = wire.decode_properties(reduced(wire.encode_properties({"headers": {"owsla_to": "x" * size}})))["headers"]
            self.assertEqual(got.get("owsla_to"), "x" * 255 if size == 255 else None)

    def test_trace(self) -> None:
        """A trace context is kept whole or not at all."""
        for size in (55, 128, 129):
            headers = {"traceparent": "0" * 55, "tracestate": "x" * size}
            got = wire.decode_properties(reduced(wire.encode_properties({"headers": headers})))["headers"]
            self.assertEqual((got["traceparent"], got.get("tracestate")), ("0" * 55, "x" * size if size <= 128 else None))


class AloneTests(SynchronousTestCase):
    def test_the_least(self) -> None:
        """A record alone has its connection id and what is said of it, and is persistent."""
        self.assertEqual(
            wire.decode_properties(minimal(b"some-id", EXTRA)),
            {"headers": {"connection_id": "some-id", **EXTRA}, "delivery_mode": 2},
        )

    def test_no_id(self) -> None:
        """Without a connection id there is no such header; an odd one is escaped, so that any client can read it."""
        self.assertEqual(wire.decode_properties(minimal(None, EXTRA))["headers"], EXTRA)
        self.assertEqual(wire.decode_properties(minimal(b"\xff", {}))["headers"], {"connection_id": "\\xff"})


class ReportTests(SynchronousTestCase):
    def test_the_contracts_report(self) -> None:
        """A report is persistent, and has the connection id, the outcome, and the correlation id as it came, byte for byte."""
        raw = report(b"some-id", b"\x03\xff\x00a", "delivered", "owsla")
        self.assertEqual(wire.split_properties(raw)["correlation_id"], b"\x03\xff\x00a")
        self.assertEqual(
            wire.decode_properties(raw),
            {
                "headers": {"connection_id": "some-id", "owsla_report": "delivered"},
                "delivery_mode": 2,
                "correlation_id": b"\xff\x00a",
                "app_id": "owsla",
            },
        )

    def test_without_a_correlation_id(self) -> None:
        """Where none was given there is none."""
        self.assertNotIn("correlation_id", wire.split_properties(report(None, None, "no-connection-id", "owsla")))
