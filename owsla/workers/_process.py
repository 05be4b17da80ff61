"""The parent's side of one worker: its process, supervised as a child of the tree."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.logger import Logger, LogLevel
from twisted.python.failure import Failure

from ..interfaces import Clock
from ..log import ESCAPED
from ..supervision import Untraced, Worker
from ..tls.expiry import Shown
from ._channel import Channel
from ._loads import Loads
from ._worker import CHANNEL_FD, LOADS_FD, PORT_FD

State: TypeAlias = Literal["starting", "ready", "draining", "ended"]
"""Of a process. `ready`: its port is open; `draining`: it was told to stop."""

KILL_AFTER: Final = 10.0
"""Seconds past its own deadline (`--drain-timeout`) after which a worker that stops is killed. It has its broker's connections
to close then, and the last of the log to send."""

HURRIED: Final = 5.0
"""Seconds after which a worker that was told to hurry, and to stop, is killed: what waits for its event handlers has three."""

KILLED_WITHIN: Final = 5.0
"""Seconds for a killed process to be gone: one in the middle of a write to a slow disk takes a moment. Past them nobody
waits for it any more."""

LAST_WORDS: Final = 1.0
"""Seconds past its end for what a process said last, which mostly is there already: whatever it started itself may have its
standard streams, and keep them open as long as it likes."""

REPLACE_TIMEOUT: Final = 60.0
"""Seconds that a fresh worker has to open its port before the one that it is to replace stays instead."""

LONGEST_LINE: Final = 4096
"""Bytes of a line on a process's standard streams that are kept until its end comes."""

PING: Final = 5.0
"""Seconds between two looks at whether a worker still turns."""

SILENCES: Final = 12
"""Pings in a row without a sign of life after which a worker is killed: a minute. Its devices are not served meanwhile, and the
broker gives up on it after two heartbeats, a minute too; nothing that a worker does takes nearly as long."""

STARTING: Final = 12
"""Pings more that a worker has for its first word: a minute, in which a busy machine has imported everything."""

LEVELS: Final = frozenset(level.name for level in LogLevel.iterconstants())


class WorkerEnded(Untraced):
    """A worker's process ended that was not told to."""


class ProcessObserver(Protocol):
    """Who is told what workers say."""

    def ready(self, process: Process) -> None:
        """Its port is open."""

    def ended(self, process: Process, graceful: bool) -> None:
        """It is gone; `graceful`: in order, with nothing left of it."""

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        """Something happened in it (`owsla.events.from_wire`)."""

    def cannot_start(self, why: str) -> bool:
        """It is the settings' fault, and would be each time. Whether everything ends for that: then it is not restarted."""


@dataclass(frozen=True, slots=True)
class WorkerStart:
    """What each worker is started with."""

    argv: Sequence[str]
    """The arguments of this process: `twistd owsla`'s."""
    count: int
    broker_port: int | None
    """The embedded broker's."""
    port: socket.socket
    """The device port, bound."""
    loads: Loads
    """How many connections each has."""
    cwd: str
    """Where the names of files in the settings begin: twistd itself may go elsewhere."""
    drain_timeout: float
    """Seconds that a worker may take to bring everything under way to its end, as long as it has not said so itself."""


class Process(ProcessProtocol):
    """One process of a worker, from its start to its end."""

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
        self._asked: dict[int, Deferred[Any]] = {}
        self._asks = 0
        self._kill_call: Any = None
        self._last_words_call: Any = None
        self._lines = {1: b"", 2: b""}
        self._transport: Any = None
        self._drain_timeout = start.drain_timeout
        self._hurried = False
        self._exited = False
        self._graceful = False
        self._streams_open = True
        self._waiting: list[Deferred[None]] = []
        self.state: State = "starting"
        self.node: str | None = None
        """Its node's name, as soon as it has said so."""
        self.served = False
        """Whether its port was open."""
        self.reason: str = ""
        """How it ended."""
        self.refused: str | None = None
        """Why it cannot start, where it said so."""
        self.shown: Shown | None = None
        """The certificate that its devices are shown, as soon as its port is open."""
        self.pid = 0
        self._silences = -STARTING

    def distinguish(self, extra: bool) -> None:
        """Name it in the log by its process id as well, where it is not the only process of its worker."""
        self._namespace = f"owsla.{self.name}.{self.pid}" if extra else f"owsla.{self.name}"
        self._log = Logger(namespace=self._namespace)

    def spawn(self) -> None:
        """Start it."""
        ours, theirs = socket.socketpair()
        with theirs, open(os.devnull, "rb") as nothing:
            ours.setblocking(False)
            factory = Factory.forProtocol(lambda: self._channel)
            factory.noisy = False
            self._reactor.adoptStreamConnection(ours.fileno(), socket.AF_UNIX, factory)
            ours.close()  # the reactor has one of its own
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

    # -- towards it --------------------------------------------------------------------------------------------------------

    def stop(self) -> Deferred[None]:
        """Have it stop in order; it is killed if that takes too long. Fires when it is gone."""
        if self.state not in ("draining", "ended"):
            self.state = "draining"
            self._channel.send("stop")
            if not self._exited:
                patience = HURRIED if self._hurried else self._drain_timeout + KILL_AFTER
                self._kill_call = self._clock.callLater(patience, self._kill_late)
        return self.gone()

    def hurry(self) -> None:
        """Have it wait for nothing more; if it stops, or once it does, it is killed soon."""
        self._hurried = True
        self._channel.send("hurry")
        if self._kill_call is not None and self._kill_call.getTime() > self._clock.seconds() + HURRIED:
            self._kill_call.reset(HURRIED)

    def gone(self) -> Deferred[None]:
        """Fires when it is."""
        gone: Deferred[None] = Deferred()
        if self.state == "ended":
            gone.callback(None)
        else:
            self._waiting.append(gone)
        return gone

    def tell(self, type: str, **values: Any) -> None:
        """Say something to it (see `_channel`)."""
        self._channel.send(type, **values)

    def ask(self, what: str) -> Deferred[Any]:
        """Ask it for "metrics" or "state". Fails with `WorkerEnded` when it is gone."""
        answered: Deferred[Any] = Deferred()
        if not self._channel.open:
            answered.errback(WorkerEnded(f"{self.name} is gone"))
            return answered
        self._asks += 1
        self._asked[self._asks] = answered
        self._channel.send("ask", id=self._asks, what=what)
        return answered

    def ping(self) -> None:
        """Look whether it still turns. One that has not for too long is killed: it hangs, and its devices with it."""
        if self.state in ("draining", "ended") or self._exited:
            return
        if self._silences >= SILENCES:
            self._log.error("{name} (process {pid}) hangs, and is killed", name=self.name, pid=self.pid)
            self._silences = 0
            self.kill()
        else:
            self._silences += 1
            self._channel.send("ping")

    def kill(self) -> None:
        """End it at once."""
        # By the transport, which knows when it was reaped: after that its number may be another process's.
        if self._transport is not None:
            try:
                self._transport.signalProcess("KILL")
            except ProcessExitedAlready:
                pass

    def _kill_late(self) -> None:
        self._log.warn("{name} (process {pid}) does not stop, and is killed", name=self.name, pid=self.pid)
        self._kill_call = self._clock.callLater(KILLED_WITHIN, self._leave_behind)
        self.kill()

    def _leave_behind(self) -> None:
        self._kill_call = None
        self._log.error("{name} (process {pid}) was killed, and is not gone: it is left behind", name=self.name, pid=self.pid)
        self._release()

    # -- from it -----------------------------------------------------------------------------------------------------------

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
            asked = self._asked.pop(message["id"], None)
            if asked is not None and not asked.called:
                asked.callback(message["value"])
        elif kind == "node":
            self.node = message["node"]
            self._log.info("This is node {node}", node=self.node)
        elif kind == "ready":
            self.served = True
            self._drain_timeout = float(message.get("drain_timeout", self._drain_timeout))
            if "certificate" in message:
                self.shown = Shown(message["certificate"], message["not_after"])
            if self.state == "starting":
                self.state = "ready"
            self._observer.ready(self)
        elif kind == "fatal":
            self.refused = message["text"]

    def _channel_lost(self) -> None:
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.called:
                answer.errback(WorkerEnded(f"{self.name} is gone"))
        self._look_for_the_end()

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        # What it writes there came past its log: an interpreter's own complaint, mostly.
        *lines, rest = (self._lines[childFD] + data).split(b"\n")
        if len(rest) > LONGEST_LINE:
            lines.append(rest)
            rest = b""
        self._lines[childFD] = rest
        for line in lines:
            self._log.warn("{line}", line=line.decode("utf-8", "replace"))

    def processExited(self, reason: Failure) -> None:
        ended: Any = reason.value
        self._exited = True
        self._graceful = self.state == "draining" and ended.exitCode == 0
        self.reason = _how(ended)
        if self._kill_call is not None:
            self._kill_call.cancel()
            self._kill_call = None
        self._last_words_call = self._clock.callLater(LAST_WORDS, self._end)
        self._look_for_the_end()

    def processEnded(self, reason: Failure) -> None:
        # Twisted says so when the streams are closed, too: which may be long after the process is gone.
        for line in self._lines.values():
            if line:
                self._log.warn("{line}", line=line.decode("utf-8", "replace"))
        self._streams_open = False
        self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        """It has ended once it is gone and has said everything: why it could not start, say."""
        if self._exited and not self._streams_open and not self._channel.open:
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


def _how(ended: Any) -> str:
    """A process's end, in words."""
    if ended.signal is not None:
        return f"it was ended by {signal.Signals(ended.signal).name}"
    return f"it ended with status {ended.exitCode}"


class WorkerProcess(Worker):
    """A worker, whichever process it is just now: started, restarted when it dies, and replaced by a fresh one."""

    def __init__(self, reactor: Any, number: int, start: WorkerStart, observer: ProcessObserver) -> None:
        """`number` counts from 1."""
        super().__init__(reactor)
        self.number = number
        self.setName(f"worker-{number}")
        self._reactor = reactor
        self._start = start
        self._observer = observer
        self._process: Process | None = None
        self._successor: Process | None = None
        self._predecessor: Process | None = None  # it was replaced, and its devices are leaving
        self._opened: dict[Process, Deferred[None]] = {}
        self._leaving = False
        self._log = Logger(namespace="owsla")

    @property
    def process(self) -> Process | None:
        """The one that devices connect to; `None` before there is one."""
        return self._process

    def startService(self) -> None:
        super().startService()
        if self._leaving:
            return  # a restart that waited when the stop began: there is no port any more
        self._process = self._spawn()
        self.later(PING, self._ping)

    def _ping(self) -> None:
        self.later(PING, self._ping)
        if self._process is not None:
            self._process.ping()

    def _spawn(self) -> Process:
        assert self.name is not None
        process = Process(self._reactor, self.name, self.number, self._start, self)
        process.spawn()
        self._log.info("{name} is process {pid}", name=self.name, pid=process.pid)
        return process

    def drain(self) -> Deferred[Any]:
        """Have it stop in order, for good: it is not started again for that, nor by a restart that waits."""
        self._leaving = True
        self.running = 0
        return self.stopService()

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        return DeferredList([process.stop() for process in self._processes()])

    def hurry(self) -> None:
        """Have it stop at once."""
        for process in self._processes():
            process.hurry()

    def _processes(self) -> list[Process]:
        """All that may run in its name just now."""
        return [one for one in (self._process, self._successor, self._predecessor) if one is not None]

    def tell(self, type: str, **values: Any) -> None:
        """Say something to it."""
        if self._process is not None:
            self._process.tell(type, **values)

    async def replace(self) -> bool:
        """Start a fresh process and, when its port is open, have the old one stop. Whether that worked; if not, the old one
        stays.
        """
        if not self.running or self._process is None or self._successor is not None:
            return False
        old = self._process
        fresh = self._successor = self._spawn()
        fresh.distinguish(True)
        self._log.info("{name}: process {fresh} is to replace process {old}", name=self.name, fresh=fresh.pid, old=old.pid)
        opened = self._opened[fresh] = Deferred()
        why = f"its port is not open after {REPLACE_TIMEOUT:g} s"
        late = self._reactor.callLater(REPLACE_TIMEOUT, self._not_opened, fresh, why)
        try:
            await opened
        except WorkerEnded as error:
            if self.running and self._process is old:  # else it was stopped, or has died itself
                self._log.warn(
                    "{name} is not replaced, and goes on as it is: {why}", name=self.name, why=fresh.refused or str(error)
                )
            self._successor = None
            fresh.kill()
            return False
        finally:
            self._opened.pop(fresh, None)
            if late.active():
                late.cancel()
        self._predecessor = old = self._process
        self._process, self._successor = fresh, None
        fresh.distinguish(False)
        old.distinguish(True)
        self._log.info(
            "{name}: process {fresh} has opened the port; process {old} lets its devices go, and ends",
            name=self.name,
            fresh=fresh.pid,
            old=old.pid,
        )
        await old.stop()
        self._log.info("{name}: process {old} is replaced; {how}", name=self.name, old=old.pid, how=old.reason)
        self._predecessor = None
        return True

    def _not_opened(self, process: Process, why: str) -> None:
        opened = self._opened.pop(process, None)
        if opened is not None:
            opened.errback(WorkerEnded(why))

    # -- what processes say ------------------------------------------------------------------------------------------------

    def ready(self, process: Process) -> None:
        self._observer.ready(process)
        opened = self._opened.pop(process, None)
        if opened is not None:
            opened.callback(None)

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        self._observer.event(time, node, event)

    def cannot_start(self, why: str) -> bool:
        return self._observer.cannot_start(why)

    def ended(self, process: Process, graceful: bool) -> None:
        self._observer.ended(process, graceful)
        if process is self._process:
            self._start.loads.absent(self.number)
        if process is self._successor:
            self._not_opened(process, process.reason)
        elif process is self._process and self.running:
            if process.refused is not None and self._observer.cannot_start(process.refused):
                return
            self.end(WorkerEnded(process.refused or f"{process.reason} (process {process.pid})"))
