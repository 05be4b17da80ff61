"""The state of a gateway as the API shows it."""

from __future__ import annotations

import json
from typing import Any, cast

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from owsla.http import CertificateReading, ParentSource, ProcessSource, state_document
from owsla.tls.inventory import InventoryEntry

from ._fakes import NOW, FakeBrokerConnection, Family, World


class ProcessTests(SynchronousTestCase):
    """A process without workers."""

    def setUp(self) -> None:
        self.world = World()

    def document(self) -> dict[str, Any]:
        state = self.successResultOf(ProcessSource(self.world.readings).state())
        document = state_document(state, NOW)
        self.assertEqual(json.loads(json.dumps(document)), document)
        return document

    def test_short(self) -> None:
        """It says which node this is, whether it is ready and why not, with the numbers of the page and its doors."""
        self.world.health.ready = False
        self.world.admission.open = 5
        self.world.window.messages = 3
        document = self.document()
        self.assertEqual((document["node"], document["started"], document["ready"]), ("0badcafe", NOW * 1000, False))
        self.assertEqual(document["checks"], {"broker_connected": False, "listener_accepting": True, "not_draining": True})
        self.assertEqual(document["missing_checks"], ["the broker is not connected"])
        self.assertEqual((document["numbers"]["open"], document["numbers"]["unconfirmed"]), (5, 3))
        self.assertEqual(document["doors"]["default"]["address"], "0.0.0.0:8883")
        self.assertEqual(document["doors"]["default"]["unconfirmed"], 3)
        self.assertEqual((document["workers"], document["missing"], document["tree"]["id"]), (None, [], "owsla"))

    def test_names(self) -> None:
        """It has numbers about messages by name, and the state of the exchange that reaches all nodes."""
        self.world.identified = 7
        self.world.lookups.waiting = 2
        self.world.broadcast.state = "refused"
        names = self.document()["names"]
        self.assertEqual((names["identified"], names["waiting"], names["broadcast"]), (7, 2, {"refused": 1}))

    def test_broker_connections(self) -> None:
        """Each connection to the broker has its role, state and last fault, with times in milliseconds."""
        self.world.broker_connections = [
            FakeBrokerConnection(since=NOW - 60, fault="refused", fault_time=NOW - 61.5),
            FakeBrokerConnection("roster", "waiting", NOW, None),
        ]
        self.assertEqual(
            self.document()["broker_connections"],
            [
                {
                    "worker": None,
                    "role": "producer",
                    "address": "amqp://guest@rabbit:5672/%2F",
                    "state": "up",
                    "since": (NOW - 60) * 1000,
                    "last_fault": {"time": (NOW - 61.5) * 1000, "text": "refused"},
                },
                {
                    "worker": None,
                    "role": "roster",
                    "address": None,
                    "state": "waiting",
                    "since": NOW * 1000,
                    "last_fault": None,
                },
            ],
        )

    def test_certificates(self) -> None:
        """Certificates have the days until their end, which are negative after it."""
        self.world.certificates = [
            CertificateReading("default", InventoryEntry("server", "cert.pem", "CN=gw", NOW + 12.26 * 86400)),
            CertificateReading(None, InventoryEntry("broker-ca", "ca.pem", "CN=ca", NOW - 86400)),
            CertificateReading("default", InventoryEntry("crl", "crl.pem", "CN=devices", None, "there is no list")),
        ]
        first, second, third = self.document()["certificates"]
        self.assertEqual(
            first,
            {
                "door": "default",
                "kind": "server",
                "file": "cert.pem",
                "subject": "CN=gw",
                "not_after": round((NOW + 12.26 * 86400) * 1000),
                "days": 12.3,
                "fault": None,
            },
        )
        self.assertEqual((second["door"], second["days"]), (None, -1.0))
        self.assertEqual((third["not_after"], third["days"], third["fault"]), (None, None, "there is no list"))


class WorkersTests(SynchronousTestCase):
    """A parent with workers."""

    def setUp(self) -> None:
        self.family = Family(2)
        self.one, self.two = self.family.workers

    def document(self) -> dict[str, Any]:
        clock = Clock()
        asked = ParentSource(cast(Any, clock), self.family.readings).state()
        clock.advance(3)
        document = state_document(self.successResultOf(asked), NOW)
        self.assertEqual(json.loads(json.dumps(document)), document)
        return document

    def test_merged(self) -> None:
        """Numbers are sums; each worker has its own, with its restarts; connections to the broker are those of all workers."""
        self.one.world.identified, self.two.world.identified = 3, 4
        self.one.world.broadcast.state = "away"
        self.two.world.broker_connections = [FakeBrokerConnection("courier", "blocked", NOW, "amqp://b", "lost", NOW)]
        self.family.certificates = [CertificateReading("default", InventoryEntry("server", "cert.pem", "CN=gw", NOW))]
        document = self.document()
        self.assertEqual((document["node"], document["started"], document["missing"]), (None, NOW * 1000, []))
        self.assertEqual((document["names"]["identified"], document["names"]["broadcast"]), (7, {"away": 1, "up": 1}))
        self.assertEqual(document["doors"]["default"]["address"], "0.0.0.0:8883")
        self.assertEqual(
            [(each["worker"], each["role"], each["state"]) for each in document["broker_connections"]],
            [("worker-1", "producer", "up"), ("worker-2", "courier", "blocked")],
        )
        self.assertEqual([each["subject"] for each in document["certificates"]], ["CN=gw"])
        worker = document["workers"][0]
        self.assertEqual(
            [worker[name] for name in ("name", "state", "node", "ready", "started")],
            ["worker-1", "ready", "00000001", True, NOW * 1000],
        )
        self.assertEqual((worker["names"]["identified"], worker["names"]["broadcast"]), (3, {"away": 1}))

    def test_certificate_of_the_broker(self) -> None:
        """The certificate that the broker shows is listed once, although each connection of each worker sees it."""
        shown = InventoryEntry("broker", "amqps://rabbit", "CN=rabbit", NOW + 86400)
        for worker in (self.one, self.two):
            worker.world.broker_connections = [FakeBrokerConnection(role, certificate=shown) for role in ("producer", "roster")]
        (certificate,) = self.document()["certificates"]
        self.assertEqual(
            [certificate[name] for name in ("door", "kind", "file", "subject", "days")],
            [None, "broker", "amqps://rabbit", "CN=rabbit", 1.0],
        )

    def test_restarts(self) -> None:
        """A worker has the number of its restarts, also while it does not answer, and is named as missing then."""
        tree = self.family.tree()
        tree["children"] = tree["children"][-1]["children"]
        self.family.readings = self.family.readings.__class__(
            workers=lambda: list(self.family.workers),
            draining=lambda: False,
            tree=lambda: tree,
            events=self.family.events,
        )
        self.two.hangs = True
        document = self.document()
        self.assertEqual([worker["restarts"] for worker in document["workers"]], [1, 1])
        self.assertEqual((document["workers"][1]["node"], document["missing"]), (None, ["worker-2"]))

    def test_older_worker(self) -> None:
        """What a worker of an older version does not say is unknown or nothing, and no reason to leave it out."""
        checks, tree = {"broker_connected": True}, self.one.world.tree
        self.one.says = {"node": "00000001", "checks": checks, "numbers": {"open": 2}, "tree": tree}
        document = self.document()
        self.assertEqual((document["numbers"]["open"], document["missing"]), (2, []))
        self.assertEqual([each["worker"] for each in document["broker_connections"]], ["worker-2"])
