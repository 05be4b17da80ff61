"""Tests of the process of a worker in its parent, without a real process: start, orders, questions, replacement, end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, ensureDeferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ReloadRefused
from owsla.log._formats import json_line
from owsla.runtime.files import Files
from owsla.supervision import AnyService, ChildSpec, GaveUp, Supervisor
from owsla.supervision._decisions import RestartBackoff
from owsla.tls.expiry import ServedCertificate
from owsla.workers._loads import ABSENT, Loads
from owsla.workers._parent import ParentService
from owsla.workers._pool import ANSWER_TIMEOUT, WorkerPool
from owsla.workers._process import (
    HURRIED,
    KILL_AFTER,
    KILLED_WITHIN,
    MISSED_PINGS,
    OUTPUT_TIMEOUT,
    PING,
    STARTUP_PINGS,
    WorkerEnded,
    WorkerProcess,
    WorkerStart,
)
from owsla.workers._supervised import REPLACE_TIMEOUT, SupervisedWorker

DRAIN = 30.0


class FakeReactor(Clock):
    """Reactor that starts no process, and keeps the end of the worker of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[Child] = []
        self._transport = StringTransport()

    def adoptStreamConnection(self, fd: int, family: int, factory: Any) -> None:
        self._transport = StringTransport()
        factory.buildProtocol(None).makeConnection(self._transport)

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], **options: Any) -> Any:
        self.children.append(Child(len(self.children) + 1000, protocol, self._transport, args, options))
        return self.children[-1]


class Child:
    """Fake process."""

    def __init__(
        self, pid: int, protocol: WorkerProcess, transport: StringTransport, args: list[str], options: dict[str, Any]
    ) -> None:
        self.pid = pid
        self.protocol = protocol
        self.args = args
        self.options = options
        self.channel = protocol._channel
        self.transport = transport
        self.transport.abortConnection = lambda: None  # type: ignore[method-assign]
        self.signals: list[str] = []
        self.reaped = False

    def signalProcess(self, name: str) -> None:
        if self.reaped:
            raise ProcessExitedAlready
        self.signals.append(name)

    def told(self) -> list[dict[str, Any]]:
        """Return the orders so far, without the first one: `start`."""
        return [message for message in self.all_told() if message["type"] != "start"]

    def all_told(self) -> list[dict[str, Any]]:
        """Return all messages so far."""
        return [json.loads(line) for line in self.transport.value().splitlines()]

    def says(self, type: str, **values: Any) -> None:
        self.channel.dataReceived(json.dumps({"type": type, **values}).encode() + b"\n")

    def ends(self, status: int | None = 0, signal_number: int | None = None) -> None:
        self.channel.connectionLost()
        self.exits(status, signal_number)
        self.closes_streams(status, signal_number)

    def exits(self, status: int | None = 0, signal_number: int | None = None) -> None:
        """End the process. Its output may arrive later."""
        self.reaped = True
        self.protocol.processExited(_how(status, signal_number))

    def closes_streams(self, status: int | None = 0, signal_number: int | None = None) -> None:
        """Close its standard streams."""
        self.protocol.processEnded(_how(status, signal_number))


def _how(status: int | None, signal_number: int | None) -> Failure:
    return Failure(ProcessDone(0) if status == 0 else ProcessTerminated(status, signal_number))


class Told:
    """Listener that records its calls."""

    everything_ends = False

    def __init__(self) -> None:
        self.ready_ones: list[int] = []
        self.ends: list[tuple[int, bool]] = []
        self.refusals: list[str] = []
        self.events: list[tuple[float, str, Mapping[str, Any]]] = []

    def ready(self, process: WorkerProcess) -> None:
        self.ready_ones.append(process.pid)

    def ended(self, process: WorkerProcess, graceful: bool) -> None:
        self.ends.append((process.pid, graceful))

    def event(self, time: float, node: str, event: Mapping[str, Any]) -> None:
        self.events.append((time, node, event))

    def cannot_start(self, why: str) -> bool:
        self.refusals.append(why)
        return self.everything_ends


class ProcessTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.port = socket.socket()
        self.addCleanup(self.port.close)
        self.loads = Loads.create(2)
        self.addCleanup(os.close, self.loads.descriptor)
        self.start = WorkerStart(
            argv=["--workers", "2"],
            generation=0,
            files=Files(contents={Path("server.pem"): b"certificate"}),
            count=2,
            broker_port=5672,
            doors={"default": self.port},
            loads=self.loads,
            cwd="/",
            drain_timeout=DRAIN,
        )
        self.told = Told()
        self.worker = self.make(1)
        self.reports: list[Failure | None] = []
        self.worker.supervise(self.reports.append)

    def make(self, number: int) -> SupervisedWorker:
        return SupervisedWorker(self.reactor, number, lambda: self.start, self.told)

    @property
    def child(self) -> Child:
        return self.reactor.children[-1]

    @property
    def killed(self) -> list[int]:
        """Return the killed processes."""
        return [child.pid for child in self.reactor.children if child.signals]

    def logged(self) -> list[tuple[str, str]]:
        """Collect log events from now on: level and text."""
        lines: list[tuple[str, str]] = []

        def observe(event: Any) -> None:
            text = str(event.get("text") or event.get("line") or event.get("log_format", ""))
            lines.append((event["log_level"].name if event.get("log_level") in LogLevel.iterconstants() else "", text))

        globalLogPublisher.addObserver(cast(Any, observe))
        self.addCleanup(globalLogPublisher.removeObserver, cast(Any, observe))
        return lines


class OneProcessTests(ProcessTestCase):
    def test_start(self) -> None:
        """A worker is started with its display name only: neither settings nor secrets are in its arguments."""
        self.worker.startService()
        self.assertEqual(self.child.args[1:], ["-P", "-m", "owsla.worker", "worker-1"])
        self.assertEqual(self.child.options["childFDs"][4], self.loads.descriptor)
        self.assertEqual(self.child.options["childFDs"][5], self.port.fileno())
        self.assertEqual(self.child.options["path"], "/")

    def test_logs(self) -> None:
        """Log lines of the worker are logged by the parent, at their level. Other output is a warning, line by line."""
        self.worker.startService()
        lines = self.logged()
        self.child.says("log", level="error", namespace="owsla", text="bad news")
        self.child.says("log", level="new in a later version", namespace="owsla.broker", text="news")
        self.child.protocol.childDataReceived(2, b"Fatal Python err")
        self.child.protocol.childDataReceived(2, b"or\nand more")
        self.child.ends(1)
        self.assertEqual(
            lines[:4],
            [("error", "bad news"), ("info", "news"), ("warn", "Fatal Python error"), ("warn", "and more")],
        )

    def test_log_parts(self) -> None:
        """The traceback and the fields of a worker's line reach the log of the parent apart, for its JSON."""
        self.worker.startService()
        logged: list[str] = []

        def observe(event: Any) -> None:
            logged.append(json_line(event))

        globalLogPublisher.addObserver(cast(Any, observe))
        self.addCleanup(globalLogPublisher.removeObserver, cast(Any, observe))
        parts = {"traceback": "Trace\n a", "fields": {"event": "a"}}
        self.child.says("log", level="error", namespace="owsla", text="bad\nTrace\n a", **parts)
        line = json.loads(logged[-1])
        self.assertEqual((line["text"], line["traceback"], line["event"]), ("bad", "Trace\n a", "a"))
        self.assertEqual((line["level"], line["namespace"]), ("error", "owsla.worker-1"))

    def test_strange_message(self) -> None:
        """An unknown message of a newer worker is ignored."""
        self.worker.startService()
        self.child.says("dance", partner="none")
        self.child.says("ready")
        self.assertEqual(self.told.ready_ones, [self.child.pid])

    def test_ask(self) -> None:
        """Answers are matched to their questions. When the process ends, open questions fail."""
        self.worker.startService()
        process = self.worker.process
        assert process is not None
        first, second = process.ask("metrics"), process.ask("state")
        questions = [message for message in self.child.told() if message["type"] == "ask"]
        self.assertEqual([question["what"] for question in questions], ["metrics", "state"])
        self.child.says("answer", id=questions[1]["id"], value={"ready": True})
        self.assertEqual(self.successResultOf(second), {"ready": True})
        self.child.says("answer", id=99, value=None)
        self.child.ends(signal_number=9, status=None)
        self.failureResultOf(first, WorkerEnded)
        self.failureResultOf(process.ask("state"), WorkerEnded)

    def test_cancelled_question(self) -> None:
        """A question that was cancelled may be answered late."""
        self.worker.startService()
        process = self.worker.process
        assert process is not None
        asked = process.ask("metrics")
        asked.addErrback(lambda failure: None)
        asked.cancel()
        self.child.says("answer", id=1, value=None)
        self.child.ends(1)

    def test_dies(self) -> None:
        """A process that ends by itself ends its child of the supervisor, with the exit status and without a traceback."""
        self.worker.startService()
        self.loads.of(1).tell(0)
        self.child.ends(status=None, signal_number=signal.SIGKILL)
        self.assertEqual(self.loads.all[0], ABSENT, "others would leave devices to it")
        (reason,) = self.reports
        assert reason is not None
        self.assertEqual(str(reason.value), "it was ended by SIGKILL (process 1000)")
        self.assertEqual(self.told.ends, [(1000, False)])

    def test_ends_well_unasked(self) -> None:
        """This also holds for status 0: a worker must run until its parent stops it."""
        self.worker.startService()
        self.child.ends(0)
        self.assertEqual(len(self.reports), 1)

    def test_refuses(self) -> None:
        """A worker that cannot start with its settings gives the reason, which becomes the reason of its end."""
        self.worker.startService()
        self.child.says("fatal", text="--cert: gone")
        self.child.ends(1)
        self.assertEqual(self.told.refusals, ["--cert: gone"])
        self.assertEqual(str(cast(Failure, self.reports[0]).value), "--cert: gone")

    def test_stop(self) -> None:
        """A stop is an order over the channel. The end of the process then is not reported to the supervisor, and is waited
        for.
        """
        self.worker.startService()
        stopped = self.worker.stopService()
        self.assertEqual(self.child.told()[-1], {"type": "stop"})
        self.assertNoResult(stopped)
        self.child.ends(0)
        self.successResultOf(stopped)
        self.assertEqual(self.reports, [])
        self.assertEqual(self.told.ends, [(1000, True)])
        self.reactor.advance(DRAIN + KILL_AFTER)
        self.assertEqual(self.killed, [])

    def test_does_not_stop(self) -> None:
        """A worker that does not stop within its drain timeout and a margin is killed."""
        self.worker.startService()
        stopped = self.worker.stopService()
        self.reactor.advance(DRAIN + KILL_AFTER - 0.1)
        self.assertEqual(self.killed, [])
        self.reactor.advance(0.1)
        self.assertEqual(self.killed, [1000])
        self.child.ends(status=None, signal_number=9)
        self.successResultOf(stopped)
        self.assertEqual(self.told.ends, [(1000, False)])

    def test_cannot_be_killed(self) -> None:
        """A process that survives SIGKILL, for example during a write to a lost disk, is not waited for."""
        self.worker.startService()
        stopped = self.worker.stopService()
        self.reactor.advance(DRAIN + KILL_AFTER)
        self.reactor.advance(KILLED_WITHIN - 0.1)
        self.assertNoResult(stopped)
        self.reactor.advance(0.1)
        self.successResultOf(stopped)
        self.child.ends(status=None, signal_number=9)

    def test_its_own_drain_timeout(self) -> None:
        """A worker with other settings than its parent has the time for its stop that it reports itself."""
        self.worker.startService()
        self.child.says("ready", drain_timeout=2 * DRAIN, certificate="server.pem", not_after=1.0)
        self.worker.stopService()
        self.reactor.advance(2 * DRAIN + KILL_AFTER - 0.1)
        self.assertEqual(self.killed, [])
        self.reactor.advance(0.1)
        self.assertEqual(self.killed, [1000])

    def test_hurry(self) -> None:
        """A worker that hangs in a hurried stop is killed soon."""
        self.worker.startService()
        self.worker.stopService()
        self.reactor.advance(1)
        self.worker.hurry()
        self.assertEqual(self.child.told()[-1], {"type": "hurry"})
        self.reactor.advance(HURRIED - 0.1)
        self.assertEqual(self.killed, [])
        self.reactor.advance(0.1)
        self.assertEqual(self.killed, [1000])

    def test_hurry_before_the_stop(self) -> None:
        """This also holds if the stop follows, as when the supervisor gives up."""
        self.worker.startService()
        self.worker.hurry()
        self.reactor.advance(HURRIED)
        self.assertEqual(self.killed, [], "nobody has told it to stop")
        self.worker.stopService()
        self.reactor.advance(HURRIED)
        self.assertEqual(self.killed, [1000])

    def test_hurry_late(self) -> None:
        """A hurried stop postpones neither the kill nor the limit of the wait after it."""
        self.worker.startService()
        stopped = self.worker.stopService()
        self.reactor.advance(DRAIN + KILL_AFTER - 1)
        self.worker.hurry()
        self.reactor.advance(1)
        self.assertEqual(self.killed, [1000])
        self.worker.hurry()
        self.reactor.advance(KILLED_WITHIN)
        self.successResultOf(stopped)

    def test_left_helpers(self) -> None:
        """A process that has exited has ended, although a child of it still holds its standard streams."""
        self.worker.startService()
        self.child.says("ready")
        self.child.channel.connectionLost()
        self.child.exits(status=None, signal_number=signal.SIGKILL)
        self.reactor.advance(OUTPUT_TIMEOUT)
        (reason,) = self.reports
        self.assertEqual(str(cast(Failure, reason).value), "it was ended by SIGKILL (process 1000)")
        lines = self.logged()
        self.child.protocol.childDataReceived(2, b"the helper's\nlast")
        self.child.closes_streams(status=None, signal_number=signal.SIGKILL)
        self.assertEqual(lines, [("warn", "the helper's"), ("warn", "last")])
        self.assertEqual((len(self.reports), len(self.told.ends)), (1, 1))

    def test_last_words(self) -> None:
        """Messages sent before the end count, also if the end is noticed first."""
        self.worker.startService()
        self.child.exits(1)
        self.child.says("fatal", text="--cert: gone")
        self.child.channel.connectionLost()
        self.assertEqual(self.reports, [])
        self.child.closes_streams(1)
        self.assertEqual(str(cast(Failure, self.reports[0]).value), "--cert: gone")

    def test_killed_when_gone(self) -> None:
        """A reaped process gets no signal: its process id may belong to another one."""
        self.worker.startService()
        process = self.worker.process
        assert process is not None
        self.child.exits(1)
        process.kill()
        self.reactor.pump([PING] * (STARTUP_PINGS + MISSED_PINGS + 2))
        self.assertEqual(self.killed, [])

    def test_hangs(self) -> None:
        """A worker without a message for a minute is killed. Any message counts."""
        self.worker.startService()
        self.child.says("ready")
        for _ in range(3):
            self.reactor.pump([PING] * MISSED_PINGS)
            self.child.says("pong")
        self.assertEqual(self.killed, [])
        self.assertEqual(self.child.told()[-1], {"type": "ping"})
        self.reactor.pump([PING] * MISSED_PINGS)
        self.assertEqual(self.killed, [])
        self.reactor.advance(PING)
        self.assertEqual(self.killed, [1000])
        self.flushLoggedErrors()

    def test_hangs_before_its_port_is_open(self) -> None:
        """A worker without an open port (while the broker is away, for example) sends messages too, or is killed."""
        self.worker.startService()
        self.child.says("node", node="0000aaaa")
        for _ in range(3):
            self.reactor.pump([PING] * MISSED_PINGS)
            self.child.says("pong")
        self.assertEqual(self.killed, [])
        self.reactor.pump([PING] * (MISSED_PINGS + 1))
        self.assertEqual(self.killed, [1000])

    def test_hangs_at_its_start(self) -> None:
        """A worker has a minute more until its first message: its start may be slow."""
        self.worker.startService()
        self.reactor.pump([PING] * (STARTUP_PINGS + MISSED_PINGS))
        self.assertEqual(self.killed, [])
        self.reactor.advance(PING)
        self.assertEqual(self.killed, [1000])

    def test_stops_slowly(self) -> None:
        """A stopping worker is not watched in this way: it has a time limit of its own."""
        self.worker.startService()
        process = self.worker.process
        assert process is not None
        self.worker.stopService()
        for _ in range(STARTUP_PINGS + MISSED_PINGS + 2):
            process.ping()
        self.assertEqual(self.killed, [])

    def test_drained_while_its_restart_waits(self) -> None:
        """During a stop no worker is restarted: its port is closed."""
        self.worker.startService()
        self.child.ends(1)
        self.successResultOf(self.worker.stop_for_good())
        self.worker.startService()
        self.assertEqual(len(self.reactor.children), 1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.successResultOf(self.worker.stopService())

    def test_everything_ends(self) -> None:
        """After a refusal that ends the parent, a worker is not restarted, and logs nothing more."""
        self.told.everything_ends = True
        self.worker.startService()
        self.child.says("fatal", text="--cert: gone")
        self.child.ends(1)
        self.assertEqual((self.told.refusals, self.reports), (["--cert: gone"], []))


class ReplaceTests(ProcessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.worker.startService()
        self.old = self.child
        self.old.says("ready")

    def replace(self) -> Deferred[bool]:
        return ensureDeferred(self.worker.replace())

    def test_works(self) -> None:
        """The old process is stopped once the port of the new one is open, and not before. The replacement is complete when it
        has ended.
        """
        replaced = self.replace()
        self.assertNotIn({"type": "stop"}, self.old.told())
        self.child.says("ready")
        self.assertIn({"type": "stop"}, self.old.told())
        self.assertNoResult(replaced)
        self.old.ends(0)
        self.assertIs(self.successResultOf(replaced), True)
        process = self.worker.process
        assert process is not None
        self.assertEqual(process.pid, self.child.pid)
        self.assertEqual(self.reports, [])
        self.child.ends(1)
        self.assertEqual(len(self.reports), 1)

    def test_endless_line(self) -> None:
        """Output without a newline is logged in pieces, and not kept."""
        lines = self.logged()
        for _ in range(100):
            self.old.protocol.childDataReceived(2, b"x" * 1000)
        self.assertEqual(len(lines), 20)

    def test_which_is_which(self) -> None:
        """While a worker has two processes, the log names the one not in charge by its process id."""
        lines: list[tuple[str, str]] = []

        def observe(event: LogEvent) -> None:
            lines.append((event["log_namespace"], formatEvent(event)))

        publisher: Any = globalLogPublisher
        publisher.addObserver(observe)
        self.addCleanup(publisher.removeObserver, observe)
        self.replace()
        fresh, old = self.child, self.old
        fresh.says("log", level="info", namespace="owsla", text="fresh starts")
        old.says("log", level="info", namespace="owsla.broker", text="old works")
        fresh.says("ready")
        fresh.says("log", level="info", namespace="owsla", text="fresh works")
        old.says("log", level="info", namespace="owsla.broker", text="old stops")
        old.ends(0)
        for line in (
            ("owsla", f"worker-1: process {fresh.pid} starts, to replace process {old.pid}"),
            (f"owsla.worker-1.{fresh.pid}", "fresh starts"),
            ("owsla.worker-1.broker", "old works"),
            ("owsla.worker-1", "fresh works"),
            (f"owsla.worker-1.{old.pid}.broker", "old stops"),
            ("owsla", f"worker-1: process {old.pid} is replaced; it ended with status 0"),
        ):
            self.assertIn(line, lines)

    def test_fresh_one_refuses(self) -> None:
        """A new process that cannot start leaves the old one in place, with the reason in the log."""
        lines = self.logged()
        replaced = self.replace()
        self.child.says("fatal", text="owsla.toml: a mistake")
        self.child.ends(1)
        self.assertIs(self.successResultOf(replaced), False)
        self.assertNotIn({"type": "stop"}, self.old.told())
        self.assertEqual(self.reports, [])
        self.assertEqual(self.told.refusals, [])
        self.assertTrue(any("is not replaced" in text for _, text in lines))

    def test_fresh_one_is_late(self) -> None:
        """A new process that does not open its port in time is killed, and the old one continues."""
        replaced = self.replace()
        self.reactor.advance(REPLACE_TIMEOUT)
        self.assertIs(self.successResultOf(replaced), False)
        self.assertEqual(self.killed, [self.child.pid])
        self.child.ends(status=None, signal_number=9)
        self.assertEqual(self.reports, [])

    def test_stopped_meanwhile(self) -> None:
        """A stop during a replacement stops both processes."""
        self.replace()
        stopped = self.worker.stopService()
        self.assertIn({"type": "stop"}, self.old.told())
        self.assertIn({"type": "stop"}, self.child.told())
        self.old.ends(0)
        self.assertNoResult(stopped)
        lines = self.logged()
        self.child.ends(0)
        self.successResultOf(stopped)
        self.assertEqual(lines, [], "nothing goes on as it is")

    def test_stopped_while_the_old_one_leaves(self) -> None:
        """A stop also waits for a replaced process that still drains. A hurried stop reaches it."""
        self.replace()
        self.child.says("ready")
        stopped = self.worker.stopService()
        self.worker.hurry()
        self.assertIn({"type": "hurry"}, self.old.told())
        self.child.ends(0)
        self.assertNoResult(stopped)
        self.old.ends(0)
        self.successResultOf(stopped)

    def test_old_one_dies_meanwhile(self) -> None:
        """If the old process dies before the new one is ready, the worker has ended as usual."""
        replaced = self.replace()
        self.old.ends(1)
        self.assertEqual(len(self.reports), 1)
        lines = self.logged()
        self.worker.stopService()
        self.child.ends(0)
        self.assertIs(self.successResultOf(replaced), False)
        self.assertEqual(lines, [])


class WorkerPoolTests(ProcessTestCase):
    """Reactions of the parent to messages of its workers."""

    def setUp(self) -> None:
        super().setUp()
        self.refused: list[str] = []
        self.pool = WorkerPool(self.reactor, self.start, emit=lambda *event: None, refused=self.refused.append)
        self.workers = self.pool.workers
        self.ended: list[Failure | None] = []
        for worker in self.workers:
            worker.supervise(self.ended.append)
            worker.startService()
        self.first, self.second = self.reactor.children

    def gone(self, child: Child) -> list[tuple[str, bool]]:
        return [(message["node"], message["served"]) for message in child.told() if message["type"] == "gone"]

    def test_another_is_told(self) -> None:
        """The death of a worker is reported to another worker that is ready."""
        self.first.says("node", node="0000aaaa")
        self.first.says("ready")
        self.second.says("ready")
        self.first.ends(status=None, signal_number=9)
        self.assertEqual(self.gone(self.second), [("0000aaaa", True)])

    def test_died_before_its_port_was_open(self) -> None:
        """If the dead worker never opened its port, back ends know no connection of it, and the message says so."""
        self.first.says("node", node="0000aaaa")
        self.second.says("ready")
        self.first.ends(status=None, signal_number=9)
        self.assertEqual(self.gone(self.second), [("0000aaaa", False)])

    def test_nobody_is_ready(self) -> None:
        """If no worker is ready, the first one to become ready is told."""
        self.first.says("node", node="0000aaaa")
        self.second.says("node", node="0000bbbb")
        self.first.ends(1)
        self.second.ends(1)
        self.workers[0].startService()
        self.child.says("ready")
        self.assertEqual(self.gone(self.child), [("0000aaaa", False), ("0000bbbb", False)])

    def test_died_nameless(self) -> None:
        """A worker that died before it had a name has left nothing."""
        self.second.says("ready")
        self.first.ends(1)
        self.assertEqual(self.gone(self.second), [])

    def test_stopped_in_order(self) -> None:
        """A worker that stopped by order has cleaned up itself."""
        self.first.says("node", node="0000aaaa")
        self.second.says("ready")
        self.workers[0].stopService()
        self.first.ends(0)
        self.assertEqual(self.gone(self.second), [])

    def reload(self) -> Deferred[None]:
        return ensureDeferred(self.pool.adopt(Files(contents={Path("server.pem"): b"renewed"}), 7.0))

    def reload_messages(self, child: Child) -> list[str]:
        return [message["type"] for message in child.told() if message["type"] in ("reload", "apply", "cancel")]

    def contents(self, child: Child, type: str) -> dict[str, str]:
        return next(message["files"] for message in child.all_told() if message["type"] == type)

    def test_a_configuration_for_all(self) -> None:
        """A configuration is applied once all workers have loaded it; a process that starts later begins with it."""
        self.first.says("ready")
        self.second.says("ready")
        adopted = self.reload()
        self.first.says("prepared", generation=1, fault=None)
        self.assertNoResult(adopted)
        self.assertEqual(self.reload_messages(self.first), ["reload"])
        self.second.says("prepared", generation=1, fault=None)
        self.assertNoResult(adopted)
        self.first.says("applied", generation=1)
        self.assertNoResult(adopted)
        self.second.says("applied", generation=1)
        self.successResultOf(adopted)
        for child in (self.first, self.second):
            self.assertEqual(self.reload_messages(child), ["reload", "apply"])
            self.assertEqual(self.contents(child, "reload"), {"server.pem": "cmVuZXdlZA=="})
        self.first.ends(1)
        self.workers[0].startService()
        self.assertEqual(self.contents(self.child, "start"), {"server.pem": "cmVuZXdlZA=="})

    def test_a_configuration_for_none(self) -> None:
        """If one worker cannot load a configuration, no worker applies it, and a process that starts later does not have it."""
        self.first.says("ready")
        self.second.says("ready")
        adopted = self.reload()
        self.first.says("prepared", generation=1, fault=None)
        self.second.says("prepared", generation=1, fault="--cert: gone")
        self.assertIn("worker-2 (process", str(self.failureResultOf(adopted, ReloadRefused).value))
        for child in (self.first, self.second):
            self.assertEqual(self.reload_messages(child), ["reload", "cancel"])
        self.first.ends(1)
        self.workers[0].startService()
        self.assertEqual(self.contents(self.child, "start"), {"server.pem": "Y2VydGlmaWNhdGU="})

    def test_a_worker_does_not_answer(self) -> None:
        """A worker that hangs holds a configuration up for a limited time, and its late answer does no harm."""
        self.first.says("ready")
        self.second.says("ready")
        adopted = self.reload()
        self.first.says("prepared", generation=1, fault=None)
        self.reactor.advance(ANSWER_TIMEOUT)
        self.assertIn("worker-2", str(self.failureResultOf(adopted, ReloadRefused).value))
        self.second.says("prepared", generation=1, fault=None)
        again = self.reload()
        self.first.says("prepared", generation=2, fault=None)
        self.assertNoResult(again)
        self.second.says("prepared", generation=1, fault=None)  # not the answer to this request
        self.assertNoResult(again)
        self.second.says("prepared", generation=2, fault=None)
        self.first.says("applied", generation=2)
        self.reactor.advance(ANSWER_TIMEOUT)  # it could be loaded, so what follows is certain
        self.successResultOf(again)

    def test_a_worker_ends_meanwhile(self) -> None:
        """A worker that ends before it answers does not hold up the others: its successor starts with the configuration."""
        self.first.says("ready")
        self.second.says("ready")
        adopted = self.reload()
        self.second.ends(status=None, signal_number=9)
        self.first.says("prepared", generation=1, fault=None)
        self.first.says("applied", generation=1)
        self.successResultOf(adopted)

    def test_a_worker_that_starts_meanwhile(self) -> None:
        """A worker that was starting during a reload, with the previous contents, gets the new ones at once."""
        self.first.says("ready")
        adopted = self.reload()
        self.first.says("prepared", generation=1, fault=None)
        self.first.says("applied", generation=1)
        self.successResultOf(adopted)
        self.assertEqual(self.reload_messages(self.second), ["reload", "apply"])

    def test_settings_of_a_reload(self) -> None:
        """Certificate and limit of a shutdown are those that a worker reports after it has applied a configuration."""
        self.first.says("ready", drain_timeout=DRAIN, certificate="server.pem", not_after=1.0)
        self.first.says("applied", generation=1, drain_timeout=DRAIN + 5, certificate="renewed.pem", not_after=2.0)
        self.assertEqual(self.pool.shown(ServedCertificate("-", 9.0)), ServedCertificate("renewed.pem", 2.0))

    def test_refusals(self) -> None:
        """An error in the settings is reported once, and ends the parent only while no worker has worked: later the file has
        changed.
        """
        for child in (self.first, self.second):
            child.says("fatal", text="--cert: gone")
            child.ends(1)
        self.assertEqual(self.refused, ["--cert: gone"])
        self.assertEqual(self.ended, [], "they are restarted, though everything ends")

    def test_refusal_later(self) -> None:
        """Once a worker has worked, one that refuses its settings is restarted: the file may be corrected."""
        self.second.says("ready")
        self.first.says("fatal", text="--cert: gone")
        self.first.ends(1)
        self.assertEqual((self.refused, len(self.ended)), ([], 1))

    def test_certificate(self) -> None:
        """The certificate shown is the one of the workers that expires first, whatever the parent was started with."""
        at_start = ServedCertificate("old.pem", 3.0)
        self.assertEqual(self.pool.shown(at_start), at_start)
        self.first.says("ready", drain_timeout=DRAIN, certificate="new.pem", not_after=20.0)
        self.assertEqual(self.pool.shown(at_start), ServedCertificate("new.pem", 20.0))
        self.second.says("ready", drain_timeout=DRAIN, certificate="newer.pem", not_after=10.0)
        self.assertEqual(self.pool.shown(at_start), ServedCertificate("newer.pem", 10.0))
        replaced = ensureDeferred(self.workers[1].replace())
        self.child.says("ready", drain_timeout=DRAIN, certificate="newest.pem", not_after=30.0)
        self.second.ends(0)
        self.successResultOf(replaced)
        self.assertEqual(self.pool.shown(at_start), ServedCertificate("new.pem", 20.0))


class ParentTests(ProcessTestCase):
    """The parent with its supervisor."""

    def setUp(self) -> None:
        super().setUp()
        self.failures: list[tuple[str, int]] = []
        self.gave_up: list[GaveUp] = []
        pool = WorkerPool(self.reactor, self.start, emit=lambda *event: None, refused=lambda why: None)

        def child(worker: SupervisedWorker) -> ChildSpec:
            def start() -> AnyService:
                return worker

            return ChildSpec(f"worker-{worker.number}", start)

        root = Supervisor(
            cast(Any, self.reactor),
            [child(worker) for worker in pool.workers],
            name="owsla",
            on_give_up=self.gave_up.append,
            backoff=RestartBackoff(jitter=lambda: 1.0),
        )
        self.renewed: list[int] = []
        self.parent = ParentService(
            doors=[self.port],
            pool=pool,
            reload=lambda: succeed(True),
            replaced=lambda: self.renewed.append(pool.generation),
            fail=lambda why, status: self.failures.append((why, status)),
        )
        self.parent.supervise(root)
        self.parent.startService()
        self.first, self.second = self.reactor.children
        for one in self.reactor.children:
            one.says("ready")

    def test_stopped_while_a_restart_waits(self) -> None:
        """A worker that waits for its restart when the stop begins is neither started on the closed port nor a reason to give
        up.
        """
        self.first.ends(1)
        self.reactor.advance(0)
        self.reactor.advance(0)
        self.child.ends(1)  # the first restart is immediate; the second one waits
        self.reactor.advance(0)
        self.assertEqual(len(self.reactor.children), 3)
        lines = self.logged()
        stopped = self.parent.stopService()
        self.reactor.pump([1.0] * 10)
        self.assertEqual(len(self.reactor.children), 3)
        self.second.ends(0)
        self.successResultOf(stopped)
        self.assertEqual(self.gave_up, [])
        self.assertEqual([line for line in lines if line[0] not in ("info", "")], [])

    def test_stopped_while_workers_are_replaced(self) -> None:
        """A stop during a rolling restart does not make the restart fail."""
        self.parent.replace()
        lines = self.logged()
        stopped = self.parent.stopService()
        for one in self.reactor.children:
            one.ends(0)
        self.successResultOf(stopped)
        self.assertEqual([line for line in lines if line[0] not in ("info", "")], [])
