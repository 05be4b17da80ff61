"""The process of a worker, as the parent sees it.

Theory of operation
-------------------

    starting ──ready──▶ ready ──stop()──▶ draining ──end──▶ ended
        └───────────────────────stop()───────▲  │
                        (an end in any state) ───┘

`starting`: the process was spawned, and its port is not open. `ready`: it reported an open port. `draining`: it was told to
stop. `ended`: it has exited and all its output was read.

An end has three parts, in any order: the process exits (`processExited`), its standard streams close (`processEnded`), and its
side of the channel closes (`_channel_lost`). The parent waits for all three, because the reason for a refused start comes
through the channel and a traceback through a stream. But a child process of the worker may have inherited these streams and
keep them open for hours. So the state becomes `ended` `OUTPUT_TIMEOUT` seconds after the exit at the latest.

A process is killed when it hangs (`ping`), when it does not stop within its own `--drain-timeout` and `KILL_AFTER`, and when it
was told to hurry and does not stop within `HURRIED`. If it does not exit even then, for example in an uninterruptible write,
the parent gives up on it after `KILLED_WITHIN`, so that the parent itself can stop.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from ..desk import NO_ARGS, Args
from ..interfaces import Clock
from ..log import ESCAPED, FIELDS, TRACEBACK
from ..runtime.files import Files
from ..supervision import Untraced
from ..tls.expiry import ServedCertificate
from ._channel import Channel
from ._loads import Loads
from ._worker import CHANNEL_FD, FIRST_DOOR_FD, LOADS_FD

State: TypeAlias = Literal["starting", "ready", "draining", "ended"]

KILL_AFTER: Final = 10.0
"""Seconds past its own deadline (`--drain-timeout`) after which a stopping worker is killed. In these seconds it closes its
connections to the broker and sends the last lines of its log.
"""

HURRIED: Final = 5.0
"""Seconds after which a worker that was told to hurry and to stop is killed. Its event handlers may take three of them."""

KILLED_WITHIN: Final = 5.0
"""Seconds to wait for a killed process to exit, which takes a moment during a write to a slow disk."""

OUTPUT_TIMEOUT: Final = 1.0
"""Seconds after the exit of a process to read its output to the end. Mostly the end is there already."""

LONGEST_LINE: Final = 4096
"""Bytes of an unfinished line on a standard stream after which it is logged without its end."""

PING: Final = 5.0
"""Seconds between two pings of a worker."""

MISSED_PINGS: Final = 12
"""Unanswered pings in a row after which a worker is killed: a minute. Its devices are not served meanwhile, and the broker
closes its connections after two heartbeats, which is a minute, too. No operation of a worker takes nearly as long.
"""

STARTUP_PINGS: Final = 12
"""Additional unanswered pings before the first message: a minute, enough to import all modules on a busy machine."""

LEVELS: Final = frozenset(level.name for level in LogLevel.iterconstants())


class WorkerEnded(Untraced):
    """Unexpected end of the process of a worker."""


class ProcessObserver(Protocol):
    """Receiver of what worker processes report."""

    def ready(self, process: WorkerProcess) -> None:
        """Note that the device port of a process is open."""

    def ended(self, process: WorkerProcess, graceful: bool) -> None:
        """Note that a process has ended; `graceful` means after a complete shutdown."""

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        """Handle an event of the node of a process (`owsla.events.from_wire`)."""

    def cannot_start(self, why: str) -> bool:
        """Note that a worker cannot start because of the settings. Return whether the parent ends, too, and does not restart
        the worker."""


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """Parameters for the start of every worker."""

    argv: Sequence[str]
    """Arguments of `twistd owsla` in this process."""
    generation: int
    """Number of the configuration: 0 at the start of the parent, and one more for each reload."""
    files: Files
    """Files of the settings. A worker uses these contents, which were checked, whatever is in the files meanwhile."""
    count: int
    """Number of workers."""
    broker_port: int | None
    """Port of the embedded broker, or `None`."""
    doors: Mapping[str, socket.socket]
    """Socket of each door, by name: bound."""
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
        self._queries = _PendingQueries(name)
        self._output = _StandardStreams()
        self._kill_call: Any = None
        self._output_timeout_call: Any = None
        self._transport: Any = None
        self._drain_timeout = start.drain_timeout
        self._hurried = False
        self._exited = False
        self._graceful = False
        self._waiting: list[Deferred[None]] = []
        self._missed_pings = -STARTUP_PINGS
        self.state: State = "starting"
        self.node: str | None = None
        """Name of the worker's node, once reported."""
        self.served = False
        """True if the port was ever open."""
        self.reason: str = ""
        """Description of the end of the process."""
        self.refused: str | None = None
        """Reason why the worker cannot start, if it reported one."""
        self.shown: ServedCertificate | None = None
        """Certificate that the worker shows to devices, once its port is open."""
        self.pid = 0
        self._reloading: dict[tuple[str, int], Deferred[str | None]] = {}

    def distinguish(self, by_pid: bool) -> None:
        """Log with the process id, while the worker has two processes (`by_pid`), or without it."""
        self._namespace = f"owsla.{self.name}.{self.pid}" if by_pid else f"owsla.{self.name}"
        self._log = Logger(namespace=self._namespace)

    def spawn(self) -> None:
        """Start the process."""
        parent_end, worker_end = socket.socketpair()
        with worker_end, open(os.devnull, "rb") as nothing:
            parent_end.setblocking(False)
            factory = Factory.forProtocol(lambda: self._channel)
            factory.noisy = False
            self._reactor.adoptStreamConnection(parent_end.fileno(), socket.AF_UNIX, factory)
            parent_end.close()  # the reactor has duplicated it
            self._channel.send(
                "start",
                argv=list(self._start.argv),
                files=self._start.files.to_wire(),
                number=self.number,
                count=self._start.count,
                broker_port=self._start.broker_port,
                doors=list(self._start.doors),
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
                    CHANNEL_FD: worker_end.fileno(),
                    LOADS_FD: self._start.loads.descriptor,
                    **{FIRST_DOOR_FD + at: sock.fileno() for at, sock in enumerate(self._start.doors.values())},
                },
            )
        self.pid = self._transport.pid

    # -- requests to the process -------------------------------------------------------------------------------------------

    def stop(self) -> Deferred[None]:
        """Stop the process in order, and kill it if that takes too long. The Deferred fires when the process is gone."""
        if self.state not in ("draining", "ended"):
            self.state = "draining"
            self._channel.send("stop")
            if not self._exited:
                timeout = HURRIED if self._hurried else self._drain_timeout + KILL_AFTER
                self._kill_call = self._clock.callLater(timeout, self._kill_late)
        return self.gone()

    def hurry(self) -> None:
        """Tell the process to end all waiting. If it stops, now or later, it is killed after `HURRIED` seconds."""
        self._hurried = True
        self._channel.send("hurry")
        if self._kill_call is not None and self._kill_call.getTime() > self._clock.seconds() + HURRIED:
            self._kill_call.reset(HURRIED)

    def gone(self) -> Deferred[None]:
        """Return a Deferred that fires when the process has ended, or does not exit after SIGKILL."""
        gone: Deferred[None] = Deferred()
        if self.state == "ended":
            gone.callback(None)
        else:
            self._waiting.append(gone)
        return gone

    def tell(self, type: str, **values: Any) -> None:
        """Send the process a message; the module `_channel` lists the types."""
        self._channel.send(type, **values)

    @property
    def generation(self) -> int:
        """Number of the configuration that the process started with."""
        return self._start.generation

    def prepare(self, generation: int, contents: Mapping[str, str]) -> Deferred[str | None]:
        """Have the process load a configuration. The Deferred fires with the reason if it cannot, and with `None` if it can or
        if it ends meanwhile.
        """
        self._channel.send("reload", generation=generation, files=contents)
        return self._answer_of_reload("prepared", generation)

    def apply(self, generation: int) -> Deferred[str | None]:
        """Have the process put a configuration that it has loaded in force. The Deferred fires when it has, or has ended."""
        self._channel.send("apply", generation=generation)
        return self._answer_of_reload("applied", generation)

    def _answer_of_reload(self, kind: str, generation: int) -> Deferred[str | None]:
        """Return a Deferred of the message of this type, or of the end of the process."""
        if not self._channel.open:
            return succeed(None)
        answer = self._reloading[kind, generation] = Deferred[str | None]()
        return answer

    def _reload_answered(self, kind: str, generation: int, fault: str | None = None) -> None:
        answer = self._reloading.pop((kind, generation), None)
        if answer is not None:
            answer.callback(fault)
        elif fault is not None:
            self._log.error(
                "{name} (process {pid}) could not load the configuration that the other workers use: {fault}",
                name=self.name,
                pid=self.pid,
                fault=fault,
            )

    def ask(self, what: str, args: Args = NO_ARGS) -> Deferred[Any]:
        """Ask a question; the module `_channel` lists them. The Deferred fails with `WorkerEnded` when the process is gone."""
        answered = self._queries.add()
        if self._channel.open:
            self._channel.send("ask", id=self._queries.last, what=what, args=dict(args))
        else:
            self._queries.fail_all()
        return answered

    def ping(self) -> None:
        """Send a ping, whose answer proves that the event loop runs. Kill a process that has left too many unanswered."""
        if self.state in ("draining", "ended") or self._exited:
            return
        if self._missed_pings >= MISSED_PINGS:
            self._log.error(
                "{name} (process {pid}) hangs, and is killed: no sign of life for {seconds:g} s",
                name=self.name,
                pid=self.pid,
                seconds=MISSED_PINGS * PING,
            )
            self._missed_pings = 0
            self.kill()
        else:
            self._missed_pings += 1
            self._channel.send("ping")

    def kill(self) -> None:
        """Send SIGKILL to the process."""
        # Not with os.kill: the transport knows when the process was reaped and its id may belong to another process.
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
        self._missed_pings = 0
        if kind == "log":
            self._log_line(message)
        elif kind == "event":
            self._observer.event(message["time"], message["node"], message["event"])
        elif kind == "answer":
            self._queries.answer(message["id"], message["value"])
        elif kind == "node":
            self.node = message["node"]
            self._log.info("This is node {node}", node=self.node)
        elif kind == "ready":
            self._port_open(message)
        elif kind == "prepared":
            self._reload_answered("prepared", message["generation"], message["fault"])
        elif kind == "applied":
            self._note_settings(message)
            self._reload_answered("applied", message["generation"])
        elif kind == "fatal":
            self.refused = message["text"]

    def _log_line(self, message: Mapping[str, Any]) -> None:
        """Log a line of the process."""
        level = message["level"] if message["level"] in LEVELS else "info"
        namespace = str(message["namespace"]).removeprefix("owsla").lstrip(".")
        logger = self._log if not namespace else Logger(namespace=f"{self._namespace}.{namespace}")
        parts = {key: message[name] for key, name in ((TRACEBACK, "traceback"), (FIELDS, "fields")) if name in message}
        logger.emit(LogLevel.lookupByName(level), "{text}", text=message["text"], **{ESCAPED: True}, **parts)

    def _port_open(self, message: dict[str, Any]) -> None:
        self.served = True
        self._note_settings(message)
        if self.state == "starting":
            self.state = "ready"
        self._observer.ready(self)

    def _note_settings(self, message: Mapping[str, Any]) -> None:
        self._drain_timeout = float(message.get("drain_timeout", self._drain_timeout))
        if "certificate" in message:
            self.shown = ServedCertificate(message["certificate"], message["not_after"])

    def _channel_lost(self) -> None:
        for kind, generation in list(self._reloading):
            self._reload_answered(kind, generation)
        self._queries.fail_all()
        self._check_ended()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        # A worker's log comes through the channel. Output on a stream is mostly an error message of the interpreter.
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
        self._output_timeout_call = self._clock.callLater(OUTPUT_TIMEOUT, self._end)
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
        if self._output_timeout_call.active():
            self._output_timeout_call.cancel()
        self._observer.ended(self, self._graceful)
        self._release()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for gone in waiting:
            gone.callback(None)


class _PendingQueries:
    """Queries that a process has not answered."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._asked: dict[int, Deferred[Any]] = {}
        self.last = 0
        """Id of the last query."""

    def add(self) -> Deferred[Any]:
        """Return a Deferred of the answer to a new query."""
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
    """Describe the end of a process for a message."""
    if ended.signal is not None:
        return f"it was ended by {signal.Signals(ended.signal).name}"
    return f"it ended with status {ended.exitCode}"
