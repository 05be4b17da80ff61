"""The run of a command with a connection to the broker, messages on standard error, and an exit status."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogBeginner

from ..broker.connection import BrokerConnection, ConnectionSettings, Role
from ..broker.logins import BrokerLogins
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..runtime.end_of_turn import EndOfTurn
from ..runtime.resolver import resolve_in_daemon_threads
from ..tls.broker import BrokerTLS, load_broker_tls


class Session:
    """Run of a command: its messages, its end, and the events of its connection to the broker."""

    def __init__(self, reactor: Any, name: str, *, patient: bool) -> None:
        """Start with status 0. A `patient` command runs until it is stopped, and waits for the broker; others end."""
        self._reactor = reactor
        self._name = name
        self._patient = patient
        self._last_failure = ""
        self._finished = False
        self.status = 0
        """Exit status, valid once the command has ended."""
        self._when_ready = ""

    def log(self, text: str) -> None:
        """Write a line to standard error."""
        try:
            sys.stderr.write(f"owsla {self._name}: {text}\n")
            sys.stderr.flush()
        except OSError:
            pass  # standard error is closed

    def log_when_ready(self, text: str) -> None:
        """Write a line each time the command is connected and ready, with the address of the broker."""
        self._when_ready = text

    def finish(self, status: int, text: str = "") -> None:
        """End with a status and a last message. Only the first call has an effect."""
        if not self._finished:
            self._finished = True
            self.status = status
            if text:
                self.log(text)
            self._reactor.stop()

    def stop_on_signals(self) -> None:
        """End on SIGINT and SIGTERM: in order on the first signal, immediately on the second.

        For a patient command this is the normal end, with status 0.
        """

        def stop(number: int) -> None:
            status = 0 if self._patient else 128 + number
            if self._finished:
                os._exit(status)
            self.finish(status)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._reactor.callFromThread(stop, number))

    # -- events of the connection ------------------------------------------------------------------------------------------

    def up(self, role: str, address: BrokerAddress) -> None:
        self._last_failure = ""
        if self._when_ready:
            self.log(f"{self._when_ready} ({address})")

    def down(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._lost(f"lost the broker {address}: {reason}")

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._lost(f"broker {address}: {reason}")

    def _lost(self, text: str) -> None:
        if not self._patient:
            self.finish(1, text)
        elif text != self._last_failure and not self._finished:
            self._last_failure = text
            self.log(f"{text}; trying again")

    def blocked(self, role: str, reason: str) -> None:
        self.log(f"the broker has blocked publishing: {reason}; waiting")

    def unblocked(self, role: str) -> None:
        self.log("the broker accepts messages again")


class MakeRole(Protocol):
    """A function that makes the role of a command: the work that it does on its connection."""

    def __call__(self, reactor: Any, turn: EndOfTurn, session: Session) -> Role: ...


def run(name: str, settings: Settings, role: MakeRole, *, patient: bool) -> int:
    """Connect to the broker for a role, and run until the session is finished. Return the exit status."""
    # Not at the top: importing the reactor installs it.
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    resolve_in_daemon_threads(reactor)
    session = Session(reactor, name, patient=patient)
    observer: Any = partial(_show_error, session.log)
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False, discardBuffer=True)
    turn = EndOfTurn(reactor)
    password_file = settings.broker_password_file
    logins = BrokerLogins(
        reactor, settings.brokers[:1], None if password_file is None else password_file.absolute(), warn=session.log
    )
    connection = BrokerConnection(
        reactor,
        turn,
        logins,
        role(reactor, turn, session),
        session,
        ConnectionSettings(
            settings.heartbeat,
            lambda: f"owsla {name} ({socket.gethostname()}, process {os.getpid()})",
            BrokerTLS(load_broker_tls(settings.broker_ca, settings.broker_cert, settings.broker_key)),
        ),
    )
    reactor.addSystemEventTrigger("before", "shutdown", connection.stopService)
    reactor.callWhenRunning(connection.startService)
    # Before the reactor runs, and in place of its own handlers: those end a command with status 0.
    session.stop_on_signals()
    reactor.run(installSignalHandlers=False)
    return session.status


def _show_error(log: Callable[[str], None], event: LogEvent) -> None:
    """Show errors of the code; a user of a command has no use for other log events."""
    if event["log_level"] >= LogLevel.error:
        failure = event.get("log_failure")
        log(formatEvent(event) + (f"\n{failure.getTraceback()}" if failure is not None else ""))
