"""Reloads of the configuration: when they begin, and what remains after a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.errors import ConfigError, ReloadRefused
from owsla.events import ConfigurationReloaded, Event, ReloadFailed
from owsla.runtime.files import Files
from owsla.wiring.applying import AppliedChanges
from owsla.wiring.configuration import Configuration, CurrentConfiguration
from owsla.wiring.reload import RETRY, SETTLE, SLOW, STUCK, Reloads

WATCH = 60.0


@dataclass(frozen=True)
class FakeSettings:
    watch: float = WATCH


@dataclass(frozen=True)
class FakeConfiguration:
    settings: FakeSettings
    files: Files


class ServedFiles(Files):
    """Files on a file server, which may not answer."""

    def __init__(self, folder: Path, hanging: list[bool]) -> None:
        super().__init__(folder)
        self.hanging = hanging

    def again(self) -> Files:
        files = ServedFiles(self.folder, self.hanging)
        if self.hanging:
            files.reading = Path("file")
        return files


class ReloadsTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.write("one")
        self.clock = Clock()
        self.events: list[Event] = []
        self.adopted: list[bytes] = []
        self.refuse: Exception | None = None
        self.no_threads = False
        self.blocked: list[tuple[Callable[[], Any], Deferred[Any]]] | None = None
        self.hanging: list[bool] = []
        self.current = CurrentConfiguration(self.load(ServedFiles(self.folder, self.hanging)))
        self.reloads = self.make()
        self.reloads.startService()
        self.addCleanup(self.reloads.stopService)

    def make(self) -> Reloads:
        return Reloads(
            self.clock,
            self.run_call,
            self.current,
            load=self.load,
            adopt=self.adopt,
            emit=self.events.append,
            now=lambda: 1000.0 + self.clock.seconds(),
        )

    def write(self, text: str) -> None:
        (self.folder / "file").write_text(text)

    def load(self, files: Files) -> Configuration:
        """Load a configuration of one file, which is faulty if it begins with `bad`."""
        content = files.read(Path("file"))
        if content.startswith(b"bad"):
            raise ConfigError(f"file: {content.decode()}")
        if content == b"defect":
            raise KeyError("defect")
        return cast(Configuration, FakeConfiguration(FakeSettings(0.0 if content == b"no watch" else WATCH), files))

    def adopt(self, old: Configuration, new: Configuration) -> Deferred[Any]:
        if self.refuse is not None:
            return fail(self.refuse)
        self.adopted.append(new.files.read(Path("file")))
        self.current.replace(new)
        return succeed(AppliedChanges(("file",)))

    def run_call(self, name: str, call: Callable[[], Any]) -> Deferred[Any]:
        """Make a call at once, or leave it for `unblock`."""
        if self.no_threads:
            raise RuntimeError("can't start new thread")
        if self.blocked is None:
            try:
                return succeed(call())
            except Exception:
                return fail(Failure())
        deferred: Deferred[Any] = Deferred()
        self.blocked.append((call, deferred))
        return deferred

    def unblock(self) -> None:
        assert self.blocked
        call, deferred = self.blocked.pop(0)
        try:
            deferred.callback(call())
        except Exception:
            deferred.errback(Failure())

    def said(self) -> list[str]:
        said = [str(event) for event in self.events]
        self.events.clear()
        return said

    # -- requests ------------------------------------------------------------------------------------------------------

    def test_request(self) -> None:
        """A request loads the files and adopts what was loaded."""
        self.clock.advance(5.0)
        self.write("two")
        self.assertIs(self.successResultOf(self.reloads.request()), True)
        self.assertEqual(self.adopted, [b"two"])
        self.assertEqual(self.said(), ["Configuration reloaded: file"])
        self.assertEqual((self.reloads.successful, self.reloads.success_time), (True, 1005.0))

    def test_nothing_has_changed(self) -> None:
        """A request is answered with an event though nothing has changed, since somebody waits for it."""
        self.successResultOf(self.reloads.request())
        self.assertEqual([type(event) for event in self.events], [ConfigurationReloaded])

    def test_fault(self) -> None:
        """A fault changes nothing, and is one event with its reason. Each request reports it."""
        self.write("bad content")
        self.assertIs(self.successResultOf(self.reloads.request()), False)
        self.assertEqual(self.adopted, [])
        self.assertEqual(self.said(), ["Reload failed, and nothing was changed: file: bad content"])
        self.assertEqual((self.reloads.successful, self.reloads.success_time), (False, 1000.0))
        self.successResultOf(self.reloads.request())
        self.assertEqual(len(self.said()), 1)

    def test_result(self) -> None:
        """When a request is answered, the result of its reload is there as a sentence. The event names who requested it."""
        results: list[tuple[bool, str]] = []
        for content in ("two", "bad content"):
            self.write(content)
            requested = self.reloads.request("ann")
            requested.addCallback(lambda success: results.append((success, self.reloads.result)))
        self.assertEqual(results, [(True, "Configuration reloaded: file"), (False, "file: bad content")])
        self.assertEqual(
            self.said(),
            [
                "Configuration reloaded (requested by ann): file",
                "Reload failed, and nothing was changed (requested by ann): file: bad content",
            ],
        )
        self.write("three")
        self.reloads.request()
        self.assertEqual(self.said(), ["Configuration reloaded: file"])  # by a signal

    def test_result_at_the_stop(self) -> None:
        """A request that the stop ends is told so."""
        self.blocked = []
        requested = self.reloads.request("ann")
        again = self.reloads.request("bob")
        self.reloads.stopService()
        self.assertIs(self.successResultOf(requested), False)
        self.assertIs(self.successResultOf(again), False)
        self.assertEqual(self.reloads.result, "the gateway stops, or has not started yet")
        self.assertIs(self.successResultOf(self.reloads.request("ann")), False)
        self.blocked = None
        self.reloads.startService()
        self.assertIs(self.successResultOf(self.reloads.request("cid")), True)
        self.assertEqual(self.said(), ["Configuration reloaded (requested by cid): file"])

    def test_refused(self) -> None:
        """A configuration that cannot be adopted changes nothing either."""
        self.refuse = ReloadRefused("worker-1: cannot")
        self.write("two")
        self.assertIs(self.successResultOf(self.reloads.request()), False)
        self.assertEqual(self.said(), ["Reload failed, and nothing was changed: worker-1: cannot"])
        self.assertEqual(self.current.files.read(Path("file")), b"one")

    def test_defect(self) -> None:
        """A defect of the program is logged, and ends neither the service nor later reloads."""
        self.write("defect")
        self.assertIs(self.successResultOf(self.reloads.request()), False)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.write("two")
        self.assertIs(self.successResultOf(self.reloads.request()), True)

    def test_request_during_a_reload(self) -> None:
        """Requests during a reload start one more after it: the files may have changed since they were read."""
        self.blocked = []
        first = self.reloads.request()
        second, third = self.reloads.request(), self.reloads.request()
        self.assertEqual(len(self.blocked), 1)
        self.write("two")
        self.unblock()
        self.successResultOf(first)
        self.assertNoResult(second)
        self.write("three")
        self.unblock()
        self.assertIs(self.successResultOf(second), True)
        self.assertIs(self.successResultOf(third), True)
        self.assertEqual((self.adopted[-1], self.blocked), (b"three", []))

    def test_stopped(self) -> None:
        """A stop answers the requests that wait, and a request after it."""
        self.blocked = []
        first = self.reloads.request()
        waiting = self.reloads.request()
        self.reloads.stopService()
        self.assertIs(self.successResultOf(first), False)
        self.assertIs(self.successResultOf(waiting), False)
        self.assertIs(self.successResultOf(self.reloads.request()), False)
        self.unblock()
        self.assertEqual((self.adopted, self.events), ([], []))

    def test_no_thread(self) -> None:
        """A machine without room for a thread makes a look, or a reload, fail; the service goes on."""
        self.write("two")
        self.no_threads = True
        self.clock.pump([WATCH, SETTLE])
        self.assertEqual(len(self.said()), 1)
        self.assertIs(self.successResultOf(self.reloads.request()), False)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.no_threads = False
        self.assertIs(self.successResultOf(self.reloads.request()), True)

    # -- the watch -----------------------------------------------------------------------------------------------------

    def test_a_file_changes(self) -> None:
        """A changed file is loaded without a request, once nothing has changed for a while: another may be about to change."""
        self.clock.advance(WATCH)
        self.assertEqual(self.events, [])
        self.write("bad half")
        self.clock.advance(WATCH)
        self.write("two")
        self.clock.advance(SETTLE)
        self.assertEqual(self.events, [])
        self.clock.advance(SETTLE)
        self.assertEqual(self.said(), ["Configuration reloaded: file"])
        self.assertEqual(self.adopted, [b"two"])

    def test_no_watch(self) -> None:
        """With an interval of 0 only requests reload."""
        self.write("no watch")
        self.reloads.request()
        self.said()
        self.write("two")
        self.clock.pump([10.0] * 60)
        self.assertEqual((self.events, self.clock.getDelayedCalls()), ([], []))

    def test_the_same_fault_is_said_once(self) -> None:
        """A fault that stays is one event, and is gone as soon as a file has changed, also without a watch."""
        for content in ("bad", "no watch"):
            self.write(content)
            self.reloads.request()
        self.said()
        self.write("bad")
        self.reloads.request()
        self.assertEqual(len(self.said()), 1)
        self.clock.pump([SETTLE] * int(3 * RETRY))
        self.assertEqual(self.events, [])
        self.write("bad again")
        self.clock.pump([SETTLE] * 2)
        self.assertEqual(self.said(), ["Reload failed, and nothing was changed: file: bad again"])
        self.write("two")
        self.clock.pump([SETTLE] * 2)
        self.assertEqual(self.said(), ["Configuration reloaded: file"])
        self.assertIs(self.reloads.successful, True)

    def test_undone(self) -> None:
        """A fault is over when the file has its previous content again."""
        self.write("bad")
        self.reloads.request()
        self.write("one")
        self.clock.pump([SETTLE] * 2)
        self.assertIs(self.reloads.successful, True)
        self.assertEqual([type(event) for event in self.events], [ReloadFailed, ConfigurationReloaded])

    def test_tried_again_without_a_change(self) -> None:
        """A refusal, whose cause may be no file, is tried again after a while."""
        self.refuse = ReloadRefused("worker-1: cannot")
        self.write("two")
        self.reloads.request()
        self.refuse = None
        self.clock.pump([SETTLE] * int(RETRY - 1))
        self.assertEqual(self.adopted, [])
        self.clock.pump([SETTLE] * 2)
        self.assertEqual(self.adopted, [b"two"])

    def test_a_missing_file(self) -> None:
        """A file that is gone and comes back is noticed both times."""
        (self.folder / "file").unlink()
        self.clock.pump([WATCH, SETTLE])
        self.assertEqual(self.said(), ["Reload failed, and nothing was changed: file: no such file or directory"])
        self.write("two")
        self.clock.pump([SETTLE] * 2)
        self.assertEqual(self.adopted, [b"two"])

    def hang(self) -> None:
        """Let the file server answer no longer."""
        self.hanging.append(True)
        self.blocked = []

    def answer(self) -> None:
        """Let the file server answer again, the waiting threads, too."""
        self.hanging.clear()
        while self.blocked:
            self.unblock()
        self.blocked = None

    def test_a_file_that_cannot_be_read_in_time(self) -> None:
        """A file that cannot be read in time is given up, and named. What the thread reads later does no harm."""
        self.hang()
        request = self.reloads.request()
        self.clock.advance(SLOW)
        self.assertIs(self.successResultOf(request), False)
        self.assertEqual(self.said(), [f"Reload failed, and nothing was changed: file: reading takes more than {SLOW:g} s"])
        self.write("two")
        self.answer()
        self.assertEqual(self.adopted, [])
        self.clock.pump([SETTLE] * 2)
        self.assertEqual((self.adopted, self.reloads.successful), ([b"two"], True))

    def test_a_load_that_takes_long(self) -> None:
        """A load that has read its files may take as long as it needs."""
        self.blocked = []
        request = self.reloads.request()
        self.clock.pump([SLOW] * 3)
        self.assertNoResult(request)
        self.unblock()
        self.assertIs(self.successResultOf(request), True)

    def test_a_file_server_that_does_not_answer(self) -> None:
        """The watch leaves a few threads behind at most, reports the fault once, and goes on when the server answers."""
        self.hang()
        self.clock.pump([1.0] * int(WATCH + 10 * SLOW))
        assert self.blocked is not None
        self.assertEqual(len(self.blocked), STUCK)
        self.assertEqual(len(self.said()), 1)
        request = self.reloads.request()
        self.clock.advance(SLOW)
        self.assertIs(self.successResultOf(request), False, "a request is tried nevertheless")
        self.answer()
        self.clock.pump([1.0] * int(RETRY))
        self.assertIs(self.reloads.successful, True)
        self.write("two")
        self.clock.pump([WATCH, SETTLE])
        self.assertEqual(self.adopted[-1], b"two")

    def test_a_request_during_a_look_that_takes_long(self) -> None:
        """A request is served while a look at the files takes long, which then has nothing to do."""
        self.blocked = []
        self.clock.advance(WATCH)
        self.write("two")
        request = self.reloads.request()
        look = self.blocked.pop(0)
        self.unblock()
        self.assertIs(self.successResultOf(request), True)
        look[1].callback(look[0]())
        self.clock.pump([SETTLE] * 3)
        self.assertEqual(self.adopted, [b"two"])
