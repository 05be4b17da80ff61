"""One process of a worker, as the parent sees it.

Theory of operation
-------------------

    starting ──ready──▶ ready ──stop()──▶ draining ──end──▶ ended
        └───────────────────────stop()───────▲  │
                        (an end in any state) ───┘

`starting`: the process was spawned, and its port is not open. `ready`: it reported an open port. `draining`: it was told to
stop. `ended`: it has exited and everything that it said was read.

An end has three parts, in any order: the process exits (`processExited`), its standard streams close (`processEnded`), and its
end of the channel closes (`_channel_lost`). All three are waited for, since the reason for a refused start comes through the
channel and a traceback through a stream. Yet a process that the worker started itself may have inherited its streams and keep
them open for hours. So the end is declared `LAST_WORDS` seconds after the exit at the latest.

A process is killed when it hangs (`ping`), when it does not stop within its own `--drain-timeout` and `KILL_AFTER`, and when it
was told to hurry and does not stop within `HURRIED`. One that does not exit even then (in an uninterruptible write, say) is
given up after `KILLED_WITHIN`, so that the parent can stop.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from ..interfaces import Clock
from ..log import ESCAPED
from ..supervision import Untraced
from ..tls.expiry import ServedCertificate
from ._channel import Channel
from ._loads import Loads
from ._worker import CHANNEL_FD, LOADS_FD, PORT_FD

State: TypeAlias = Literal["starting", "ready", "draining", "ended"]

KILL_AFTER: Final = 10.0
"""Seconds past its own deadline (`--drain-timeout`) after which a worker that stops is killed. It needs them to close its
connections to the broker and to send the last lines of its log.
"""

HURRIED: Final = 5.0
"""Seconds after which a worker that was told to hurry and to stop is killed. Its event handlers have three of them."""

KILLED_WITHIN: Final = 5.0
"""Seconds for a killed process to exit: in the middle of a write to a slow disk that takes a moment."""

LAST_WORDS: Final = 1.0
"""Seconds after its exit in which the output of a process is read to its end. Mostly it is there already."""

LONGEST_LINE: Final = 4096
"""Bytes of an unfinished line on a standard stream that are kept."""

PING: Final = 5.0
"""Seconds between two pings of a worker."""

SILENCES: Final = 12
"""Pings without a sign of life after which a worker is killed: a minute. Its devices are not served meanwhile, and the broker
gives up on it after two heartbeats, which is a minute, too. Nothing that a worker does takes nearly as long.
"""

STARTING: Final = 12
"""Additional pings before the first sign of life: a minute, in which also a busy machine has imported everything."""

LEVELS: Final = frozenset(level.name for level in LogLevel.iterconstants())


class WorkerEnded(Untraced):
    """End of the process of a worker that was not told to stop."""


class ProcessObserver(Protocol):
    """Receiver of what worker processes report."""

    def ready(self, process: WorkerProcess) -> None:
        """Note that its port is open."""

    def ended(self, process: WorkerProcess, graceful: bool) -> None:
        """Note that it has ended; `graceful` means in order, with nothing left behind."""

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        """Handle an event of its node (`owsla.events.from_wire`)."""

    def cannot_start(self, why: str) -> bool:
        """Note a start that fails because of the settings. Return whether the parent ends, too: then it is not started again.
        """


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """Parameters that every worker is started with."""

    argv: Sequence[str]
    """Arguments of `twistd owsla` in this process."""
    count: int
    """Number of workers."""
    broker_port: int | None
    """Port of the embedded broker, or `None`."""
    port: socket.socket
    """Device port, bound."""
    loads: Loads
    """Connection counts of the workers."""
    cwd: str
    """Folder that file names in the settings are relative to. twistd may change its own."""
    drain_timeout: float
    """Seconds that the shutdown of a worker may take, until the worker reports its own limit."""


class WorkerProcess(ProcessProtocol):
    """Process of a worker, from its start to its end."""

    def __init__(self, reactor: Any, name: str, number: int, start: WorkerStart, observer: ProcessObserver) -> None:
        """`number` counts from 1."""
        self._clock: Clock = reactor
        self._reactor = reactor
        self.name = name
        self.number = number
        self._start = start
        self._observer = observer
        self._namespace = f"owsla.{name}"
        self._log = Logger(namespace=self._namespace)
        self._channel = Channel(reactor, self._received, self._channel_lost)
        self._questions = _Questions(name)
        self._output = _StandardStreams()
        self._kill_call: Any = None
        self._last_words_call: Any = None
        self._transport: Any = None
        self._drain_timeout = start.drain_timeout
        self._hurried = False
        self._exited = False
        self._graceful = False
        self._waiting: list[Deferred[None]] = []
        self._silences = -STARTING
        self.state: State = "starting"
        self.node: str | None = None
        """Name of its node, once reported."""
        self.served = False
        """True if its port was ever open."""
        self.reason: str = ""
        """How the process ended, in words."""
        self.refused: str | None = None
        """Reason why it cannot start, if it reported one."""
        self.shown: ServedCertificate | None = None
        """Certificate that its devices are shown, once its port is open."""
        self.pid = 0

    def distinguish(self, by_pid: bool) -> None:
        """Log with the process id, while the worker has two processes (`by_pid`), or without it."""
        self._namespace = f"owsla.{self.name}.{self.pid}" if by_pid else f"owsla.{self.name}"
        self._log = Logger(namespace=self._namespace)

    def spawn(self) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        with theirs, open(os.devnull, "rb") as nothing:
            ours.setblocking(False)
            factory = Factory.forProtocol(lambda: self._channel)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
            ours.close()  # the reactor has duplicated it
            self._channel.send(
                "start",
                argv=list(self._start.argv),
                number=self.number,
                count=self._start.count,
                broker_port=self._start.broker_port,
            )
            self._transport = self._reactor.spawnProcess(
                self,
                sys.executable,
                # -P: a file in the working folder must not replace a module of Owsla.
                [sys.executable, "-P", "-m", "owsla.worker", self.name],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                path=self._start.cwd,
                childFDs={
                    0: nothing.fileno(),
                    1: "r",
                    2: "r",
                    CHANNEL_FD: theirs.fileno(),
                    PORT_FD: self._start.port.fileno(),
                    LOADS_FD: self._start.loads.descriptor,
                },
            )
        self.pid = self._transport.pid

    # -- requests to the process -------------------------------------------------------------------------------------------

    def stop(self) -> Deferred[None]:
        """Stop it in order, and kill it if that takes too long. The Deferred fires when it is gone."""
        if self.state not in ("draining", "ended"):
            self.state = "draining"
            self._channel.send("stop")
            if not self._exited:
                timeout = HURRIED if self._hurried else self._drain_timeout + KILL_AFTER
                self._kill_call = self._clock.callLater(timeout, self._kill_late)
        return self.gone()

    def hurry(self) -> None:
        """Have it stop waiting for anything. If it stops, now or later, it is killed soon."""
        self._hurried = True
        self._channel.send("hurry")
        if self._kill_call is not None and self._kill_call.getTime() > self._clock.seconds() + HURRIED:
            self._kill_call.reset(HURRIED)

    def gone(self) -> Deferred[None]:
        """Return a Deferred that fires when the process is gone."""
        gone: Deferred[None] = Deferred()
        if self.state == "ended":
            gone.callback(None)
        else:
            self._waiting.append(gone)
        return gone

    def tell(self, type: str, **values: Any) -> None:
        """Send it a message (`_channel` lists them)."""
        self._channel.send(type, **values)

    def ask(self, what: str) -> Deferred[Any]:
        """Ask it for "metrics" or "state". The Deferred fails with `WorkerEnded` when the process is gone."""
        answered = self._questions.add()
        if self._channel.open:
            self._channel.send("ask", id=self._questions.last, what=what)
        else:
            self._questions.fail_all()
        return answered

    def ping(self) -> None:
        """Check that its event loop runs. Kill a process that has been silent for too long: its devices are not served."""
        if self.state in ("draining", "ended") or self._exited:
            return
        if self._silences >= SILENCES:
            self._log.error(
                "{name} (process {pid}) hangs, and is killed: no sign of life for {seconds:g} s",
                name=self.name,
                pid=self.pid,
                seconds=SILENCES * PING,
            )
            self._silences = 0
            self.kill()
        else:
            self._silences += 1
            self._channel.send("ping")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        # Through the transport, which knows when the process was reaped: then its id may belong to another process.
        if self._transport is not None:
            try:
                self._transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass

    def _kill_late(self) -> None:
        self._log.warn("{name} (process {pid}) does not stop, and is killed", name=self.name, pid=self.pid)
        self._kill_call = self._clock.callLater(KILLED_WITHIN, self._give_up)
        self.kill()

    def _give_up(self) -> None:
        self._kill_call = None
        self._log.error("{name} (process {pid}) did not exit after SIGKILL; giving up on it", name=self.name, pid=self.pid)
        self._release()

    # -- messages of the process -------------------------------------------------------------------------------------------

    def _received(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        self._silences = 0
        if kind == "log":
            level = message["level"] if message["level"] in LEVELS else "info"
            namespace = str(message["namespace"]).removeprefix("owsla").lstrip(".")
            logger = self._log if not namespace else Logger(namespace=f"{self._namespace}.{namespace}")
            logger.emit(LogLevel.lookupByName(level), "{text}", text=message["text"], **{ESCAPED: True})
        elif kind == "event":
            self._observer.event(message["time"], message["node"], message["event"])
        elif kind == "answer":
            self._questions.answer(message["id"], message["value"])
        elif kind == "node":
            self.node = message["node"]
            self._log.info("This is node {node}", node=self.node)
        elif kind == "ready":
            self._port_open(message)
        elif kind == "fatal":
            self.refused = message["text"]

    def _port_open(self, message: dict[str, Any]) -> None:
        self.served = True
        self._drain_timeout = float(message.get("drain_timeout", self._drain_timeout))
        if "certificate" in message:
            self.shown = ServedCertificate(message["certificate"], message["not_after"])
        if self.state == "starting":
            self.state = "ready"
        self._observer.ready(self)

    def _channel_lost(self) -> None:
        self._questions.fail_all()
        self._check_ended()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        # A worker's log comes through the channel. What it writes to a stream is mostly the interpreter's own complaint.
        self._log_output(self._output.received(childFD, data))

    def _log_output(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._log.warn("{line}", line=line.decode("utf-8", "replace"))

    def processExited(self, reason: Failure) -> None:
        ended: Any = reason.value
        self._exited = True
        self._graceful = self.state == "draining" and ended.exitCode == 0
        self.reason = _describe_end(ended)
        if self._kill_call is not None:
            self._kill_call.cancel()
            self._kill_call = None
        self._last_words_call = self._clock.callLater(LAST_WORDS, self._end)
        self._check_ended()

    def processEnded(self, reason: Failure) -> None:
        # Twisted calls this once the streams are closed, too, which may be long after the exit.
        self._log_output(self._output.close())
        self._check_ended()

    def _check_ended(self) -> None:
        if self._exited and not self._output.open and not self._channel.open:
            self._end()

    def _end(self) -> None:
        if self.state == "ended":
            return
        self.state = "ended"
        if self._last_words_call.active():
            self._last_words_call.cancel()
        self._observer.ended(self, self._graceful)
        self._release()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for gone in waiting:
            gone.callback(None)


class _Questions:
    """Questions to a process that it has not answered."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked: dict[int, Deferred[Any]] = {}
        self.last = 0
        """Id of the last question."""

    def add(self) -> Deferred[Any]:
        """Return the answer to a new question."""
        self.last += 1
        answered = self._asked[self.last] = Deferred()
        return answered

    def answer(self, number: int, value: Any) -> None:
        answered = self._asked.pop(number, None)
        if answered is not None and not answered.called:  # it may have been cancelled
            answered.callback(value)

    def fail_all(self) -> None:
        asked, self._asked = self._asked, {}
        for answered in asked.values():
            if not answered.called:
                answered.errback(WorkerEnded(f"{self._name} is gone"))


class _StandardStreams:
    """Standard output and error of a process, in lines."""

    def __init__(self) -> None:
        self._rest = {1: b"", 2: b""}
        self.open = True

    def received(self, descriptor: int, data: bytes) -> list[bytes]:
        """Return the lines that these data complete."""
        *lines, rest = (self._rest[descriptor] + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._rest[descriptor] = rest
        return lines

    def close(self) -> list[bytes]:
        """Return the unfinished lines at the end of the streams."""
        self.open = False
        return [line for line in self._rest.values() if line]


def _describe_end(ended: Any) -> str:
    """Return how a process ended, in words."""
    if ended.signal is not None:
        return f"it was ended by {signal.Signals(ended.signal).name}"
    return f"it ended with status {ended.exitCode}"
