"""Tests of positions in a stream."""

from __future__ import annotations

from argparse import ArgumentTypeError
from datetime import datetime

from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.amqp.wire import Timestamp
from owsla.cli._stream_offset import UnfinishedOffsets, message_offset, offset


def header(position: object = None, **headers: object) -> bytes:
    """Return the payload of a content header, with a position if there is one."""
    table = {**headers, **({} if position is None else {"x-stream-offset": position})}
    return wire.header_payload(1, wire.encode_properties({"headers": table}))


class OffsetTests(SynchronousTestCase):
    def test_words_and_numbers(self) -> None:
        """A word is for the broker to know, and a number is one, without a unit."""
        for word in ("first", "last", "next"):
            self.assertEqual(offset(word), word)
        for number in (0, 20, (1 << 63) - 1):
            found = offset(str(number))
            self.assertEqual(found, number)
            self.assertNotIsInstance(found, Timestamp)

    def test_times(self) -> None:
        """An age has a unit. A time is local, unless it says otherwise."""
        for text, moment in (
            ("30s", 970),
            ("2001-02-03T04:05", datetime(2001, 2, 3, 4, 5).timestamp()),
            ("1970-01-01T01:00:00+01:00", 0),
        ):
            found = offset(text, lambda: 1000.0)
            self.assertIsInstance(found, Timestamp)
            self.assertEqual(found, moment)

    def test_neither(self) -> None:
        """RabbitMQ answers INTERNAL_ERROR to a position that it cannot read, so all others are refused."""
        for text in ("", "First", "-1", "1.5", "1x", str(1 << 63), "yesterday", "0s", "1hh", "\u0661", "2026-13-01"):
            self.assertRaises(ArgumentTypeError, offset, text)
        self.assertRaises(ArgumentTypeError, offset, "1h", lambda: 1000.0)


class MessageOffsetTests(SynchronousTestCase):
    def test_offset(self) -> None:
        """A message of a stream has its position in a header."""
        self.assertEqual(message_offset(header(7, connection_id="x")), 7)

    def test_none(self) -> None:
        """A message of a queue has none, whatever its headers contain."""
        for other in (header(), header("text"), header(connection_id="x-stream-offset"), header(7)[:-3], b"x-stream-offset"):
            self.assertIsNone(message_offset(other))


class UnfinishedOffsetsTests(SynchronousTestCase):
    def test_first(self) -> None:
        """The first message that is not finished, in whatever order others are, and behind the last if all are finished."""
        unfinished = UnfinishedOffsets()
        self.assertIsNone(unfinished.first)
        for tag, position in ((1, 10), (2, 11), (3, 15)):
            unfinished.add(tag, header(position))
        for tag, first in ((2, 10), (1, 15), (3, 16)):
            unfinished.done(tag)
            self.assertEqual(unfinished.first, first)

    def test_queue(self) -> None:
        """Messages of a queue have no position."""
        unfinished = UnfinishedOffsets()
        unfinished.add(1, header())
        unfinished.done(1)
        self.assertIsNone(unfinished.first)

    def test_nothing_came(self) -> None:
        """Without a message it stays where it was."""
        self.assertEqual(UnfinishedOffsets(5).first, 5)
