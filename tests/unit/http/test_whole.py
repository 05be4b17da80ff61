"""A parent's pages: all of its workers on each."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Sample
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk._asking import TIME_LIMIT
from owsla.events import GapSkipped
from owsla.http import ParentSource
from owsla.interfaces import FIRST_DOOR
from owsla.supervision import render

from ._fakes import NOW, FakeWorker, Family, door, pages_site
from .test_pages import Text


class Case(SynchronousTestCase):
    """Asks a parent of three workers."""

    def setUp(self) -> None:
        self.family = Family(3)
        self.one, self.two, self.three = self.family.workers
        self.clock = cast("Any", Clock())
        self.site = pages_site(ParentSource(self.clock, self.family.readings), self.clock)
        self.site.doStart()
        self.addCleanup(self.site.doStop)

    def begin(self, path: str, headers: str = "") -> tuple[Any, StringTransport]:
        """Ask, and leave it to the test to wait."""
        transport = StringTransport()
        protocol: Any = self.site.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(f"GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{headers}\r\n".encode())
        return protocol, transport

    def read(self, transport: StringTransport) -> tuple[int, str]:
        head, _, body = transport.value().partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None, head
        self.assertEqual(int(length[1]), len(body))
        return int(head.split()[1]), body.decode()

    def ask(self, path: str, headers: str = "") -> tuple[int, str]:
        return self.read(self.begin(path, headers)[1])

    def samples(self) -> list[Sample]:
        status, text = self.ask("/metrics")
        self.assertEqual(status, 200)
        return [sample for family in parse(text) for sample in family.samples]

    def values(self, name: str) -> dict[str, float]:
        """The values of a metric by process, and by its other label where there is one."""
        return {
            "/".join([sample.labels["worker"], *(value for label, value in sample.labels.items() if label != "worker")]):
            sample.value
            for sample in self.samples()
            if sample.name == name
        }  # fmt: skip


class MetricsTests(Case):
    """One scrape for all of them."""

    def test_families(self) -> None:
        """Each family is there once, and each sample says of which process it is."""
        text = self.ask("/metrics")[1]
        for keyword in ("HELP", "TYPE"):
            names = re.findall(rf"^# {keyword} (\S+)", text, re.MULTILINE)
            self.assertEqual(len(names), len(set(names)))
        series = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in self.samples()]
        self.assertEqual(len(series), len(set(series)))
        self.assertEqual({dict(labels)["worker"] for _, labels in series}, {"parent", "1", "2", "3"})

    def test_openmetrics(self) -> None:
        """The newer format parses by its stricter rules, and says the same."""
        for worker in self.family.workers:
            worker.world.doors[FIRST_DOOR].latency.observe(0.1)
        text = self.ask("/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n")[1]
        newer = {family.name: len(family.samples) for family in parse_openmetrics(text)}
        older = {family.name.removesuffix("_info"): len(family.samples) for family in parse(self.ask("/metrics")[1])}
        self.assertEqual(newer, older)

    def test_values(self) -> None:
        """Each worker's are its own."""
        for number, worker in enumerate(self.family.workers, 1):
            worker.world.admission.open = worker.world.admission.connections = 100 * number
            worker.world.devices.lines_out = number
        self.assertEqual(self.values("owsla_lines_sent_total"), {"1": 1, "2": 2, "3": 3})
        self.assertEqual(
            {key: value for key, value in self.values("owsla_connections").items() if key.endswith("open")},
            {"1/open": 100, "2/open": 200, "3/open": 300},
        )

    def test_histograms(self) -> None:
        """A histogram has all its buckets for each worker."""
        for seconds in (0.0004, 0.02):
            self.two.world.doors[FIRST_DOOR].latency.observe(seconds)
        found: dict[str, dict[str, float]] = {}
        for sample in self.samples():
            if sample.name == "owsla_publish_to_confirm_seconds_bucket":
                found.setdefault(sample.labels["worker"], {})[sample.labels["le"]] = sample.value
        self.assertEqual(set(found), {"1", "2", "3"})
        self.assertEqual({len(buckets) for buckets in found.values()}, {16})
        self.assertEqual((found["2"]["0.0005"], found["2"]["+Inf"], found["1"]["+Inf"]), (1, 2, 0))

    def test_the_parent(self) -> None:
        """The parent tells of itself: its process, its children's restarts, its handlers, and whether a worker is ready."""
        self.family.events.handle(GapSkipped("c", None, 1, 2), "parent", NOW)
        self.family.events.handle(GapSkipped("c", None, 1, 2), "another", NOW)
        self.family.event_drops["json"] = 5
        self.assertEqual(self.values("owsla_restarts_total")["parent/owsla/workers/worker-2"], 1)
        self.assertEqual(self.values("owsla_restarts_total")["2/owsla/broker/producer"], 3)
        self.assertNotIn("parent/owsla/workers/worker-2/owsla/broker", self.values("owsla_restarts_total"))
        self.assertEqual(self.values("owsla_event_drops_total"), {"parent/json": 5})
        self.assertEqual(self.values("owsla_events_total")["parent/gap-skipped"], 1)
        self.assertEqual(self.values("process_start_time_seconds")["parent"], NOW)
        self.assertNotIn("parent", self.values("owsla_lines_sent_total"))
        self.one.world.health.ready = self.two.world.port.accepting = False
        self.assertEqual(self.values("owsla_ready")["parent/worker_ready"], 1)
        self.three.world.draining = True
        self.assertEqual(self.values("owsla_ready")["parent/worker_ready"], 0)
        self.family.draining = True
        self.assertEqual(self.values("owsla_ready")["parent/not_draining"], 0)

    def test_up(self) -> None:
        """A worker that does not answer is down, and leaves no trace else; nor does it spoil what is said of the others."""
        self.two.error = ValueError("gone")
        self.three.says = [["what", "no type", 1, []]]
        self.assertEqual(self.values("owsla_worker_up"), {"1": 1, "2": 0, "3": 0})
        self.assertEqual(set(self.values("owsla_lines_sent_total")), {"1"})

    def test_two_of_a_number(self) -> None:
        """Should two have one number: one of them counts, and the exposition is a good one."""
        self.family.workers.append(FakeWorker(2))
        self.test_families()
        self.assertEqual(self.values("owsla_worker_up"), {"1": 1, "2": 1, "3": 1})

    def test_no_workers(self) -> None:
        """Before there are any there is the parent."""
        self.family.workers.clear()
        self.assertEqual({sample.labels["worker"] for sample in self.samples()}, {"parent"})

    def test_hangs(self) -> None:
        """A worker that hangs delays the others' numbers by the bound, and the next scrape not at all."""
        self.two.hangs = True
        transport = self.begin("/metrics")[1]
        self.clock.advance(TIME_LIMIT - 0.1)
        self.assertEqual(transport.value(), b"")
        self.clock.advance(0.2)
        self.assertEqual(self.read(transport)[0], 200)
        self.assertEqual(self.values("owsla_worker_up"), {"1": 1, "2": 0, "3": 1})

    def test_gone_meanwhile(self) -> None:
        """Whoever does not wait for the answer leaves nothing behind, and nothing in the log."""
        self.two.hangs = True
        protocol, transport = self.begin("/metrics")
        protocol.connectionLost(Failure(ConnectionLost()))
        self.two.answer()
        self.clock.advance(TIME_LIMIT)
        self.assertEqual(transport.value(), b"")
        self.assertEqual(self.flushLoggedErrors(), [])


class ReadyTests(Case):
    """/readyz and /healthz."""

    def ready(self) -> tuple[int, Any]:
        status, body = self.ask("/readyz")
        return status, json.loads(body)

    def test_ready(self) -> None:
        """200 with what each worker says."""
        self.one.world.health.ready = False
        self.one.state = "starting"
        self.three.error = ValueError("gone")
        status, body = self.ready()
        checks = {"broker_connected": True, "listener_accepting": True, "not_draining": True}
        self.assertEqual(status, 200)
        self.assertEqual(
            body,
            {
                "ready": True,
                "checks": {"worker_ready": True, "not_draining": True},
                "workers": [
                    {
                        "name": "worker-1",
                        "state": "starting",
                        "ready": False,
                        "checks": checks | {"broker_connected": False},
                    },
                    {"name": "worker-2", "state": "ready", "ready": True, "checks": checks},
                    {"name": "worker-3", "state": "ready", "ready": False, "checks": None},
                ],
            },
        )

    def test_not_ready(self) -> None:
        """503 without a worker that takes devices, and while all of it stops."""
        for worker in self.family.workers:
            worker.world.port.accepting = False
        status, body = self.ready()
        self.assertEqual((status, body["checks"]), (503, {"worker_ready": False, "not_draining": True}))
        self.one.world.port.accepting = True
        self.assertEqual(self.ready()[0], 200)
        self.family.draining = True
        status, body = self.ready()
        self.assertEqual((status, body["checks"]), (503, {"worker_ready": True, "not_draining": False}))

    def test_healthz(self) -> None:
        """The parent turns: that is all that it says, and no worker is asked."""
        for worker in self.family.workers:
            worker.hangs = True
        self.assertEqual(self.ask("/healthz"), (200, "ok\n"))
        self.assertEqual(self.one.asked, [])


class TreeTests(Case):
    """/tree"""

    def test_tree(self) -> None:
        """Each worker's tree is below its child in the parent's; one that does not answer is its child alone."""
        self.two.error = ValueError("gone")
        tree = json.loads(self.ask("/tree")[1])
        workers = {child["id"]: child for child in tree["children"][-1]["children"]}
        self.assertEqual(list(workers), ["worker-1", "worker-2", "worker-3"])
        self.assertEqual(workers["worker-1"]["children"], [self.one.world.tree])
        self.assertNotIn("children", workers["worker-2"])
        self.assertNotIn("children", self.family.tree()["children"][-1]["children"][0])
        self.assertIn("    ├── worker-1 (permanent)", render(tree))
        self.assertIn("    │   └── owsla (permanent", render(tree))

    def test_no_tree(self) -> None:
        """What is no tree is no answer."""
        tree = {"id": 5}
        answers: list[Any] = [
            {},
            [],
            5,
            {"tree": None},
            {"node": "n", "checks": {"a": True}, "numbers": {}, "tree": tree},
            {"node": "n", "checks": {}, "numbers": {}, "tree": self.one.world.tree},
            {"node": "n", "checks": {"a": True}, "numbers": {"open": "many"}, "tree": self.one.world.tree},
            {"node": "n", "checks": {"a": True}, "numbers": {}, "tree": self.one.world.tree, "doors": {"a": 1}},
        ]
        for says in answers:
            self.two.says = says
            whole = json.loads(self.ask("/tree")[1])
            self.assertNotIn("children", whole["children"][-1]["children"][1], says)


class IndexTests(Case):
    """The page for people."""

    def test_index(self) -> None:
        """Totals over the workers, and a row for each."""
        for number, worker in enumerate(self.family.workers, 1):
            worker.world.admission.open = 1000 * number
        self.three.world.health.ready = False
        status, body = self.ask("/")
        page = Text(body)
        self.assertEqual((status, page.open), (200, []))
        for text in ("3 workers", "Ready", "6,000 of 30,000", "worker-1node 00000001, ready", "3,000"):
            self.assertIn(text, page.text)
        self.assertIn("node 00000003, not ready: the broker is not connected", page.text)
        self.assertIn("│   └── owsla", page.text)
        self.assertEqual(page.links, ["/metrics", "/healthz", "/readyz", "/tree"])

    def test_doors(self) -> None:
        """Totals of each door over the workers that answer; what only some of them do is said with their number."""
        for worker in self.family.workers:
            worker.world.doors["plain"] = door(connections=1000, unconfirmed=1)
        self.assertIn("plaintakes lines, accepting3,000 of 1,500243 of 60,000", Text(self.ask("/")[1]).text)
        self.one.world.doors["plain"] = door(taking=False)
        self.two.world.doors["plain"] = door(taking=False, accepting=False)
        text = Text(self.ask("/")[1]).text
        self.assertIn("plaintakes lines in 1 of 3 workers, accepting in 2 of 3 workers1,000 of 1,500", text)
        self.assertIn("defaulttakes lines, accepting0 of 30,000", text)
        self.three.error = ValueError("gone")
        self.assertIn("plainwaits, accepting in 1 of 2 workers0 of 1,000140 of 40,000", Text(self.ask("/")[1]).text)

    def test_no_answer(self) -> None:
        """A worker that does not answer has a row all the same; what workers say is text, never markup."""
        self.two.error = ValueError("gone")
        self.two.state = "<b>odd</b>"
        self.one.world.node = "<i>"
        body = self.ask("/")[1]
        self.assertNotIn("<b>", body)
        self.assertNotIn("<i>", body)
        self.assertIn("<b>odd</b>, no answer", Text(body).text)

    def test_newer(self) -> None:
        """Numbers that a worker of another version does not have are 0; those that are new there are left out."""
        state = {
            "node": "n",
            "checks": {"new_check": False},
            "numbers": {"open": 7, "new": 1},
            "tree": self.two.world.tree,
            "doors": {"a": {"connections": 8, "new": 1}, "b": {}},
        }
        self.two.says = state
        text = Text(self.ask("/")[1]).text
        self.assertIn("new_check", text)
        self.assertIn("7 of 20,000", text)
        self.assertIn("8 of 0", text)
