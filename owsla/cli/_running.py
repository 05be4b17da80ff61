"""How a command runs: one connection to the broker, lines on standard error, an end with a status."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogBeginner

from ..broker.connection import BrokerConnection, Role
from ..config.addresses import BrokerAddress
from ..config.settings import Settings
from ..runtime.end_of_turn import Turn
from ..runtime.resolver import resolve_in_daemon_threads
from ..tls.broker import verifier
from ..tls.certificates import certificates_in


class Session:
    """One run of a command: what it says, and how it ends. It hears what happens to the connection to the broker."""

    def __init__(self, reactor: Any, name: str, *, patient: bool) -> None:
        """`patient`: the command runs until it is stopped, and waits for a broker that is not there. Any other ends then."""
        self._reactor = reactor
        self._name = name
        self._patient = patient
        self._said = ""
        self._finished = False
        self.status = 0
        """The exit status, once it has ended."""
        self.on_up = ""
        """What to say each time that everything is set up."""

    def say(self, text: str) -> None:
        """Write a line on standard error."""
        try:
            sys.stderr.write(f"owsla {self._name}: {text}\n")
            sys.stderr.flush()
        except OSError:
            pass  # nobody listens

    def finish(self, status: int, text: str = "") -> None:
        """End with this status, and these last words. Only the first call counts."""
        if not self._finished:
            self._finished = True
            self.status = status
            if text:
                self.say(text)
            self._reactor.stop()

    def stop_on_signals(self) -> None:
        """End on SIGINT and SIGTERM: in order at the first one, at once at the second.

        What runs until it is stopped has done its work then, and ends with 0.
        """

        def stop(number: int) -> None:
            status = 0 if self._patient else 128 + number
            if self._finished:
                os._exit(status)
            self.finish(status)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: self._reactor.callFromThread(stop, number))

    # -- what happens to the connection ------------------------------------------------------------------------------------

    def up(self, role: str, address: BrokerAddress) -> None:
        self._said = ""
        if self.on_up:
            self.say(f"{self.on_up} ({address})")

    def down(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._lost(f"lost the broker {address}: {reason}")

    def failed(self, role: str, address: BrokerAddress, reason: str) -> None:
        self._lost(f"broker {address}: {reason}")

    def _lost(self, text: str) -> None:
        if not self._patient:
            self.finish(1, text)
        elif text != self._said and not self._finished:
            self._said = text
            self.say(f"{text}; trying again")

    def blocked(self, role: str, reason: str) -> None:
        self.say(f"the broker takes nothing for the time being: {reason}")

    def unblocked(self, role: str) -> None:
        self.say("the broker takes messages again")


class MakeRole(Protocol):
    """Makes what a command does with its connection."""

    def __call__(self, reactor: Any, turn: Turn, session: Session) -> Role: ...


def run(name: str, settings: Settings, role: MakeRole, *, patient: bool) -> int:
    """Connect to the broker for `role`, and run until the session is finished; the exit status."""
    from twisted.internet import reactor as _reactor

    reactor: Any = _reactor
    resolve_in_daemon_threads(reactor)
    session = Session(reactor, name, patient=patient)
    complain: Any = partial(_complain, session.say)
    globalLogBeginner.beginLoggingTo([complain], redirectStandardIO=False, discardBuffer=True)
    turn = Turn(reactor)
    connection = BrokerConnection(
        reactor,
        turn,
        settings.brokers[:1],
        role(reactor, turn, session),
        session,
        heartbeat=settings.heartbeat,
        connection_name=f"owsla {name} ({socket.gethostname()}, process {os.getpid()})",
        tls=verifier(certificates_in(settings.broker_ca) if settings.broker_ca is not None else None),
    )
    reactor.addSystemEventTrigger("before", "shutdown", connection.stopService)
    reactor.callWhenRunning(session.stop_on_signals)
    reactor.callWhenRunning(connection.startService)
    reactor.run()
    return session.status


def _complain(say: Callable[[str], None], event: LogEvent) -> None:
    """Show an error of our own code; whatever else is logged concerns nobody here."""
    if event["log_level"] >= LogLevel.error:
        failure = event.get("log_failure")
        say(formatEvent(event) + (f"\n{failure.getTraceback()}" if failure is not None else ""))
