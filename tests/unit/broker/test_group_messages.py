"""Tests of the messages for many devices that wait for their publication."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.group_messages import ATTEMPTS, EXPIRY_INTERVAL, GroupMessages
from owsla.letter import BAD, Letter

from .fakes import Source

NOW = 1_700_000_000.0


class GroupMessagesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock: Any = Clock()
        self.source = Source()
        self.recorded: list[tuple[int, str]] = []
        self.looked = 0
        self.fault: Exception | None = None
        self.messages = GroupMessages(
            self.clock, publish=self.publish, record=self.record, now=lambda: NOW + self.clock.seconds()
        )

    def publish(self) -> None:
        self.looked += 1
        if self.fault is not None:
            raise self.fault

    def record(self, letter: Letter, reason: str) -> None:
        self.recorded.append((letter.tag, reason))

    def add(self, tag: int, *, expires_in: float | None = None, source: Source | None = None) -> Letter:
        letter = (source or self.source).letter(tag)
        letter.expires_at = None if expires_in is None else NOW + expires_in
        self.messages.add(letter, f"group {tag}")
        return letter

    def first(self) -> int | None:
        """Return the tag of the message to publish."""
        message = self.messages.to_publish()
        return None if message is None else message.letter.tag

    def test_one_at_a_time(self) -> None:
        """The next message goes when the first one has arrived, and that is acknowledged then."""
        self.assertIsNone(self.first())
        self.add(1)
        self.add(2)
        self.assertEqual((self.first(), self.first()), (1, 1))
        self.messages.published()
        self.assertEqual((self.first(), self.source.finished), (None, []))
        self.messages.unanswered()
        self.assertEqual(self.first(), 1)
        self.messages.published()
        self.messages.arrived()
        self.assertEqual((self.first(), len(self.messages), self.source.finished), (2, 1, [1]))

    def test_unwanted(self) -> None:
        """A message whose consumer has ended is dropped, since the broker delivers it again; an expired one is recorded."""
        gone = Source()
        self.add(1, source=gone)
        self.add(2, expires_in=5.0)
        self.add(3).deadline = 5.0
        self.add(4).expires_at = BAD
        gone.open = False
        self.clock.advance(5.0)
        self.assertEqual(self.first(), 4)
        self.assertEqual((self.recorded, len(self.messages)), ([(2, "expired"), (3, "expired")], 1))

    def test_blame(self) -> None:
        """A message that the broker refuses again and again is recorded, and does not hold up the others."""
        self.add(1)
        self.add(2)
        for _ in range(ATTEMPTS - 1):
            self.messages.blame()
        self.assertEqual((self.first(), self.recorded), (1, []))
        self.messages.blame()
        self.assertEqual((self.first(), self.recorded), (2, [(1, "refused")]))

    def test_expiry_behind_the_first(self) -> None:
        """Messages that expire while they wait are recorded soon, except one that is on its way; the next one may go then."""
        self.add(1, expires_in=0.5)
        self.add(2, expires_in=0.5)
        self.add(3)
        self.messages.published()
        self.messages.watch_expiry()
        self.messages.watch_expiry()
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(EXPIRY_INTERVAL)
        self.assertEqual((self.recorded, len(self.messages), self.looked), ([(2, "expired")], 2, 1))

    def test_watching_ends(self) -> None:
        """Nothing is looked for once there are no messages. An error does not end it before."""
        self.add(1)
        self.messages.watch_expiry()
        self.fault = ZeroDivisionError()
        self.clock.advance(EXPIRY_INTERVAL)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.fault = None
        self.messages.arrived()
        self.clock.advance(EXPIRY_INTERVAL)
        self.assertEqual((self.looked, self.clock.getDelayedCalls()), (2, []))
