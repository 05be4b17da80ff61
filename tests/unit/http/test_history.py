"""The samples of the last hour, and the service that takes them."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import History, Lateness, ParentSource, ProcessSource, SampleService
from owsla.http._snapshot import Snapshot, Snapshots, snapshot_from_json, snapshot_of, snapshot_to_json

from ._fakes import Family, World
from .test_sample import START, confirms, later

NOW = 1_700_000_000.0


def parsed(text: str | None) -> Any:
    assert text is not None
    return json.loads(text)


class HistoryTests(SynchronousTestCase):
    """What is kept."""

    def setUp(self) -> None:
        self.history = History()
        self.clock = 5000.0

    def run_for(self, seconds: int, *, lines: int = 10, late: float = 0.001) -> None:
        """Take a sample a second; the process receives `lines` lines in each."""
        for _ in range(seconds):
            self.clock += 1.0
            number = self.history.number + 1
            snapshot = replace(
                START, clock=self.clock, lines_in=number * lines, late_count=number, late=(late,), devices=number
            )
            self.history.add(self.clock, NOW + self.clock, Snapshots(snapshot))

    def span(self, span: str) -> list[Any]:
        samples = parsed(self.history.span(span, self.clock, NOW + self.clock))["samples"]
        assert isinstance(samples, list)
        return samples

    def test_nothing_yet(self) -> None:
        """Before the first sample there is none."""
        self.assertIsNone(self.history.newest)
        self.assertEqual(parsed(self.history.span("5m", 0.0, NOW)), {"step": 1000, "samples": []})
        self.assertEqual(parsed(self.history.span("1h", 0.0, NOW)), {"step": 10000, "samples": []})
        self.assertRaises(KeyError, self.history.span, "1d", 0.0, NOW)

    def test_newest(self) -> None:
        """The newest sample is there with its time, and can be told from the one before by its number."""
        self.run_for(2)
        sample = parsed(self.history.newest)
        self.assertEqual((sample["time"], sample["lines_in"]), (round((NOW + self.clock) * 1000), 10))
        self.assertEqual(self.history.number, 2)
        self.assertEqual(self.span("5m")[-1], sample)

    def test_spans(self) -> None:
        """Five minutes have a sample a second, an hour has one every ten seconds; no more are kept, the oldest go first."""
        self.run_for(4000)
        fine, coarse = self.span("5m"), self.span("1h")
        self.assertEqual((len(fine), len(coarse)), (300, 360))
        self.assertEqual([one["devices"] for one in fine], list(range(3701, 4001)))
        self.assertEqual({after["time"] - before["time"] for before, after in pairwise(fine)}, {1000})
        self.assertEqual({after["time"] - before["time"] for before, after in pairwise(coarse)}, {10000})
        self.assertEqual({one["lines_in"] for one in coarse}, {10})

    def test_coarse(self) -> None:
        """A sample of ten seconds is over all ten: its rate is their mean, its lateness their worst."""
        self.run_for(1)
        self.run_for(4, lines=10)
        self.run_for(1, lines=11, late=0.7)
        self.run_for(5, lines=12)
        first, second = self.span("1h")
        self.assertIsNone(first["lines_in"])
        self.assertEqual((second["lines_in"], second["lateness"]), (12.2, 700))

    def test_gap(self) -> None:
        """Moments without a sample are missing; samples that are older than the span are gone."""
        self.run_for(100)
        self.clock += 50
        self.run_for(100)
        times = [one["time"] for one in self.span("5m")]
        self.assertEqual(max(after - before for before, after in pairwise(times)), 51_000)
        self.clock += 150
        self.assertEqual(len(self.span("5m")), 100)
        self.clock += 10_000
        self.assertEqual((self.span("5m"), self.span("1h")), ([], []))

    def test_clock_is_set(self) -> None:
        """When the wall clock is set back by an hour, the samples stay in order and as far apart as they were."""
        self.run_for(10)
        wall = NOW + self.clock - 3600
        samples = parsed(self.history.span("5m", self.clock, wall))["samples"]
        self.assertEqual([one["time"] for one in samples], [round((wall - back) * 1000) for back in range(9, -1, -1)])

    def test_memory(self) -> None:
        """A full history of a gateway with 8 workers takes less than 1.8 MB."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        workers: dict[str, Snapshot] = {f"worker-{number}": START for number in range(1, 9)}
        own = replace(START, latency=())
        for number, seconds in enumerate([10.0] * 330 + [1.0] * 305):
            own = later(own, seconds, late=(0.0012,) * 10)
            workers = {
                name: later(
                    worker,
                    seconds,
                    lines_in=worker.lines_in + 12_345,
                    lines_out=worker.lines_out + 12_345,
                    handshakes=worker.handshakes + 123,
                    devices=12_345,
                    unconfirmed=1234,
                    cpu=worker.cpu + 0.5,
                    late=(0.0023,),
                    latency=confirms(b1=number * 100, b3=number * 10),
                )
                for name, worker in workers.items()
            }
            self.history.add(own.clock, NOW + own.clock, Snapshots(own, workers))
        used = tracemalloc.get_traced_memory()[0] - before
        self.assertLess(used, 1_800_000)
        for span, count in (("5m", 300), ("1h", 360)):  # or it was not full
            self.assertEqual(len(parsed(self.history.span(span, own.clock, NOW))["samples"]), count)


class SnapshotTests(SynchronousTestCase):
    """Snapshots of a process."""

    def test_wire(self) -> None:
        """A snapshot of a worker arrives at its parent as it was."""
        world = World()
        world.port.accepted, world.port.handshakes, world.port.failed_handshakes = 9, 7, 2
        world.window.confirmed_lines, world.window.given_up_lines, world.window.messages = 100, 1, 5
        world.devices.lines_out = 50
        world.admission.open = 6
        world.readings.lateness.observe(0.01)
        next(iter(world.doors.values())).latency.observe(0.0007)
        snapshot = snapshot_of(world.readings)
        self.assertEqual(snapshot_from_json(json.loads(json.dumps(snapshot_to_json(snapshot)))), snapshot)
        self.assertEqual(
            (snapshot.connects, snapshot.handshakes, snapshot.failed_handshakes, snapshot.lines_in, snapshot.lines_out),
            (9, 7, 2, 106, 50),
        )
        self.assertEqual((snapshot.devices, snapshot.unconfirmed, snapshot.late), (6, 5, (0.01,)))
        self.assertEqual(snapshot.latency, confirms(b1=1))

    def test_malformed(self) -> None:
        """What another version sends is refused in one way, whatever it is."""
        good = snapshot_to_json(START)
        malformed: list[Any] = [{}, [], "x", 5]
        malformed += [{**good, "late": None}, {**good, "latency": [1]}, {**good, "devices": "many"}]
        for bad in malformed:
            self.assertRaises(ValueError, snapshot_from_json, bad)


class LaterSource(ProcessSource):
    """A source that answers when the test says."""

    def __init__(self, world: World) -> None:
        super().__init__(world.readings)
        self.asked: list[Deferred[Snapshots]] = []

    def snapshots(self) -> Deferred[Snapshots]:
        self.asked.append(Deferred())
        return self.asked[-1]


class ServiceTests(SynchronousTestCase):
    """The service that takes the samples."""

    def setUp(self) -> None:
        self.reactor: Any = MemoryReactorClock()
        self.history = History()
        self.wall = NOW

    def service(self, source: Any) -> SampleService:
        service = SampleService(self.reactor, source, self.history, now=lambda: self.wall)
        service.startService()
        self.addCleanup(service.stopService)
        return service

    def test_every_second(self) -> None:
        """A sample is taken at the start and every second, until the service stops; and again after another start."""
        service = self.service(ProcessSource(World().readings))
        self.reactor.pump([0.0, *[0.1] * 51])
        self.assertEqual(self.history.number, 6)
        service.stopService()
        self.reactor.advance(5)
        self.assertEqual(self.history.number, 6)
        service.startService()
        self.reactor.pump([0.0, *[0.1] * 11])
        self.assertEqual(self.history.number, 8)

    def test_lateness(self) -> None:
        """It measures the reactor of its process."""
        world = World()
        self.service(ProcessSource(world.readings))
        self.reactor.pump([0.1, 0.4])
        self.assertEqual([round(one, 3) for one in world.readings.lateness.recent], [0.0, 0.3])
        self.assertIsInstance(world.readings.lateness, Lateness)

    def test_no_answer(self) -> None:
        """While an answer is outstanding nothing else is asked: a hanging worker does not make questions pile up."""
        source = LaterSource(World())
        self.service(source)
        self.reactor.pump([0.0, 1.0, 1.0, 0.5])
        self.assertEqual((len(source.asked), self.history.number), (1, 0))
        source.asked[0].callback(Snapshots(START))
        self.assertEqual(self.history.number, 1)
        self.reactor.advance(0.5)
        self.assertEqual(len(source.asked), 2)

    def test_started_again(self) -> None:
        """After a stop with an outstanding answer, the next start asks again."""
        source = LaterSource(World())
        service = self.service(source)
        self.reactor.advance(0.0)
        service.stopService()
        service.startService()
        self.reactor.advance(0.0)
        self.assertEqual(len(source.asked), 2)

    def test_late(self) -> None:
        """After the reactor was held up there is one sample, and the next a second later."""
        self.service(ProcessSource(World().readings))
        self.reactor.advance(0.0)
        self.reactor.advance(7.3)
        self.assertEqual(self.history.number, 2)
        self.reactor.pump([0.9, 0.2])
        self.assertEqual(self.history.number, 3)

    def test_workers(self) -> None:
        """A parent has samples by worker; one that hangs is a gap in them, after the time limit once for it."""
        family = Family(2)
        self.service(ParentSource(self.reactor, family.readings))
        self.reactor.advance(0.0)
        self.assertEqual(list(parsed(self.history.newest)["workers"]), ["worker-1", "worker-2"])
        family.workers[1].hangs = True
        self.reactor.pump([0.5] * 12)
        sample = parsed(self.history.newest)
        self.assertEqual((sample["workers"]["worker-2"], sample["missing"]), (None, ["worker-2"]))
        self.assertIsNotNone(sample["workers"]["worker-1"])
        self.assertGreaterEqual(self.history.number, 4)
