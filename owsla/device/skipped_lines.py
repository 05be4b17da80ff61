"""Account of the lines that were skipped since they were too long (`--on-long skip`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..events import Event, LinesSkipped
from ..interfaces import Clock
from .connections import Connection

REPORT_INTERVAL: Final = 60.0
"""Least seconds between two events of a connection."""


@dataclass(slots=True)
class _Account:
    """Lines of one connection that no event has reported yet."""

    lines: int
    limit: int
    door: str
    due: float = 0.0


class SkippedLines:
    """Counts skipped lines. The first of a connection is reported at once, others together after a minute, or at its end."""

    def __init__(self, clock: Clock, emit: Callable[[Event], None]) -> None:
        self._clock = clock
        self._emit = emit
        self._accounts: dict[Connection, _Account] = {}  # in the order of their reports
        self.lines = 0
        """Number of lines skipped so far."""

    def add(self, connection: Connection, limit: int, door: str) -> None:
        """Count a line that is longer than `limit` bytes; `door` is that of the connection."""
        self.lines += 1
        account = self._accounts.get(connection)
        if account is None:
            account = self._accounts[connection] = _Account(1, limit, door)
            self._report(connection, account)
        else:
            account.lines += 1
            account.limit = limit

    def closed(self, connection: Connection) -> None:
        """Report what is left of a connection that has ended."""
        account = self._accounts.pop(connection, None)
        if account is not None and account.lines:
            self._emit_lines(connection, account)

    def tick(self, now: float) -> None:
        """Report the lines since the last report of their connection, if that is a minute ago."""
        while self._accounts:
            connection, account = next(iter(self._accounts.items()))
            if account.due > now:
                return
            del self._accounts[connection]
            if account.lines:
                self._accounts[connection] = account
                self._report(connection, account)

    def _report(self, connection: Connection, account: _Account) -> None:
        self._emit_lines(connection, account)
        account.lines = 0
        account.due = self._clock.seconds() + REPORT_INTERVAL

    def _emit_lines(self, connection: Connection, account: _Account) -> None:
        self._emit(
            LinesSkipped(
                connection.connection_id.decode(),
                connection.device_id,
                account.limit,
                account.lines,
                account.door,
                connection.traceparent,
            )
        )
