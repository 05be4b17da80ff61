"""Tests of the recently delivered messages of a channel, and of the identity of a message."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.amqp import wire
from owsla.broker.message_properties import REDELIVERED_HEADER, identity, relayed
from owsla.broker.recent_writes import KEPT_WHOLE, RecentWrites

from .fakes import message

ID = "0123abcd-0000-8000-8000-000000000001"


class IdentityTests(SynchronousTestCase):
    def identity(self, body: bytes = b"body", headers: dict[str, Any] | None = None, **properties: Any) -> bytes:
        return identity(message(body, {"connection_id": ID, **(headers or {})}, **properties), body)

    def test_differs(self) -> None:
        """Messages differ by their bodies, properties and headers."""
        different = [
            self.identity(),
            self.identity(b"other"),
            self.identity(message_id="1"),
            self.identity(message_id="2"),
            self.identity(correlation_id="1"),
            self.identity(reply_to="1"),
            self.identity(headers={"n": 1}),
            self.identity(headers={"connection_id": ID[:-1] + "2"}),
        ]
        self.assertEqual(len(set(different)), len(different))

    def test_copies(self) -> None:
        """Copies have the same identity, whatever RabbitMQ counts in them, or a forward has moved or added."""
        for headers, properties in (
            ({}, {}),
            ({"CC": ["a"], "n": 1}, {"expiration": "60000", "message_id": "m", "user_id": "guest"}),
        ):
            one = message(b"body", {"connection_id": ID, **headers}, **properties)
            forward = wire.header_payload(4, relayed(one[12:], {REDELIVERED_HEADER: True}))
            counted = message(b"body", {"connection_id": ID, **headers, "x-delivery-count": 3}, **properties)
            self.assertNotEqual(one, forward)
            self.assertEqual(len({identity(each, b"body") for each in (one, forward, counted)}), 1)

    def test_unreadable(self) -> None:
        """A message that cannot be read to its end has an identity, too."""
        odd = [wire.header_payload(4, b"\0\x02"), wire.header_payload(4, b"\0\x02\0")]
        self.assertEqual(len({identity(each, b"body") for each in odd}), 2)


class RecentWritesTests(SynchronousTestCase):
    def test_the_last(self) -> None:
        """As many messages as the prefetch are remembered, large ones too: the last ones."""
        written = RecentWrites(3)
        bodies = [b"x" * size for size in (1, 2, KEPT_WHOLE, 2 * KEPT_WHOLE)]
        for body in bodies:
            written.add(message(body), body)
        self.assertEqual(written.identities(), [identity(message(body), body) for body in bodies[1:]])
