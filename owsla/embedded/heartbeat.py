"""Heartbeats of a connection: sent while the broker is silent, expected while the client is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.base import DelayedCall

MISSED_CHECKS: Final = 4
"""Number of silent checks, two per interval, after which the client is considered dead: two intervals, as in RabbitMQ."""


class HeartbeatMonitor:
    """Timer of the heartbeats in both directions.

    `send` sends a heartbeat frame, `dead` ends the connection. `is_reading` tells whether the connection is read at all: a
    client that is not read cannot be heard.
    """

    __slots__ = ("_call", "_clock", "_dead", "_interval", "_is_reading", "_received", "_send", "_sent", "_silent_checks")

    def __init__(self, clock: Any, send: Callable[[], None], dead: Callable[[], None], is_reading: Callable[[], bool]) -> None:
        self._clock = clock
        self._send = send
        self._dead = dead
        self._is_reading = is_reading
        self._interval = 0.0
        self._call: DelayedCall | None = None
        self._received = self._sent = False
        self._silent_checks = 0

    def start(self, interval: float) -> None:
        """Check twice per interval (in seconds) from now on."""
        self._interval = interval
        self._call = self._clock.callLater(interval / 2, self._check)

    def stop(self) -> None:
        """Stop the timer."""
        if self._call is not None and self._call.active():
            self._call.cancel()

    def received(self) -> None:
        """Note that the client sent bytes: any traffic counts as a heartbeat (specification, 4.2.7)."""
        self._received = True

    def sent(self) -> None:
        """Note that bytes were sent to the client."""
        self._sent = True

    def _check(self) -> None:
        self._call = self._clock.callLater(self._interval / 2, self._check)
        self._silent_checks = 0 if self._received or not self._is_reading() else self._silent_checks + 1
        self._received = False
        if self._silent_checks >= MISSED_CHECKS:
            self._dead()
            return
        if not self._sent:
            self._send()
        self._sent = False
