"""An operator closes connections: the only one of an id, or all, at one node and at several workers."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import Args, BadArgument
from owsla.desk._close import close_at_workers, merge_close
from owsla.desk._device import merge_device
from owsla.device.protocol import DeviceProtocol
from owsla.events import DeviceDisconnected, DeviceKicked

from ..device._fakes import Source
from ._gateway import Gateway

BY = "user ada (uid 1000)"


def ids(*endpoints: DeviceProtocol) -> list[str]:
    return [endpoint.connection_id.decode() for endpoint in endpoints]


class CloseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway = Gateway()

    def test_one(self) -> None:
        """The connection is closed in order, after what was written to it; who has closed it is in the events."""
        endpoint, wire = self.gateway.connect(device_id="d1")
        self.gateway.send(endpoint, Source(), b"last words")
        answer = self.gateway.ask("close", id="d1", by=BY)
        self.assertEqual((answer["closed"], answer["total"]), (ids(endpoint), 1))
        self.assertEqual([row["connection_id"] for row in answer["matches"]], ids(endpoint))
        self.assertEqual((wire.data, wire.closed), (b"last words\r\n", "lost"))
        [kicked] = self.gateway.of_type(DeviceKicked)
        self.assertEqual(kicked, DeviceKicked(ids(endpoint)[0], "d1", BY, "default"))
        self.gateway.end(endpoint)
        [ended] = self.gateway.of_type(DeviceDisconnected)
        self.assertEqual(ended.reason, f"closed by an operator ({BY})")

    def test_none(self) -> None:
        """Nothing is closed if there is no such connection, or if it is being closed already."""
        self.assertEqual(self.gateway.ask("close", id="d1", by=BY), {"closed": [], "matches": [], "total": 0})
        endpoint = self.gateway.device("d1")
        endpoint.close("closed by the back end")
        answer = self.gateway.ask("close", id="d1", by=BY)
        self.assertEqual((answer["closed"], answer["matches"][0]["closing"]), ([], "closed by the back end"))
        self.assertEqual(self.gateway.of_type(DeviceKicked), [])

    def test_several(self) -> None:
        """Of several connections none is closed, unless all are to be; one that closes already does not count."""
        endpoints = [self.gateway.device("d1") for _ in range(3)]
        answer = self.gateway.ask("close", id="d1", by=BY)
        self.assertEqual((answer["closed"], len(answer["matches"]), answer["total"]), ([], 3, 3))
        self.assertFalse(any(endpoint.closing for endpoint in endpoints))
        endpoints[0].close("enough")
        another = self.gateway.device("d1")
        self.assertEqual(self.gateway.ask("close", id="d1", by=BY, all=True)["closed"], ids(another, *endpoints[:0:-1]))
        last = self.gateway.device("d1")
        self.assertEqual(self.gateway.ask("close", id="d1", by=BY)["closed"], ids(last), "the others close already")

    def test_all_of_an_address(self) -> None:
        """All connections from one address can be closed, of which a hundred are shown. An error in one of them does not keep
        the others open.
        """
        endpoints = [self.gateway.device(peer=f"192.0.2.5:{number}") for number in range(150)]
        other = self.gateway.device(peer="192.0.2.6:1")
        self.patch(endpoints[70].transport, "loseConnection", lambda: 1 // 0)
        answer = self.gateway.ask("close", id="192.0.2.5", by=None, all=True)
        self.assertEqual((len(answer["closed"]), len(answer["matches"]), answer["total"]), (150, 100, 150))
        self.assertTrue(all(endpoint.closing for endpoint in endpoints))
        self.assertEqual((endpoints[70].transport.closed, other.closing), ("aborted", False))
        self.assertEqual(endpoints[0].close_reason, "closed by an operator (an operator)")

    def test_no_id(self) -> None:
        """A question without an id closes nothing, and is an error."""
        self.gateway.device()
        self.failureResultOf(self.gateway.desk.answer("close", {"all": True}), BadArgument)
        self.assertEqual(self.gateway.of_type(DeviceKicked), [])


class CloseAtWorkersTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.workers = [Gateway(), Gateway(), Gateway()]
        self.asked: list[str] = []

    def ask(self, what: str, args: Args) -> Deferred[dict[str, Any]]:
        self.asked.append(what)
        answers = [(f"worker-{number}", worker.ask(what, **args)) for number, worker in enumerate(self.workers)]
        merge = {"close": merge_close, "device": merge_device}[what]
        return succeed({**merge(answers, args), "missing": []})

    def close(self, **args: Any) -> dict[str, Any]:
        return self.successResultOf(close_at_workers(self.ask, {"by": BY, **args}))

    def test_one(self) -> None:
        """The connection of a device is closed wherever it is."""
        endpoint = self.workers[1].device("d1")
        answer = self.close(id="d1")
        self.assertEqual((answer["closed"], answer["missing"]), (ids(endpoint), []))
        self.assertEqual([row["worker"] for row in answer["matches"]], ["worker-1"])
        self.assertEqual(self.workers[1].of_type(DeviceKicked)[0].by, BY)

    def test_one_each(self) -> None:
        """Connections at two workers are two: none is closed, unless all are to be."""
        endpoints = [worker.device("d1") for worker in self.workers[:2]]
        answer = self.close(id="d1")
        self.assertEqual((answer["closed"], answer["total"], answer["missing"]), ([], 2, []))
        self.assertEqual({row["worker"] for row in answer["matches"]}, {"worker-0", "worker-1"})
        self.assertNotIn("findings", answer["matches"][0])
        self.assertFalse(any(endpoint.closing for endpoint in endpoints))
        answer = self.close(id="d1", all=True)
        self.assertEqual((sorted(answer["closed"]), answer["total"]), (sorted(ids(*endpoints)), 2))

    def test_none(self) -> None:
        """Nothing is closed without a match."""
        answer = self.close(id="d1")
        self.assertEqual(answer, {"closed": [], "matches": [], "total": 0, "missing": []})
        self.assertEqual(self.asked, ["device"])
