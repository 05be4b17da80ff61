"""The devices that talk most, and the slowest: rates between two passes, which run while somebody asks."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import BadArgument
from owsla.desk._top import FIRST_INTERVAL, INTERVAL, LASTING, merge_top

from ..device._fakes import Source
from ._gateway import Gateway


class TopTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway = Gateway()

    def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds * 8)):
            self.gateway.clock.advance(0.125)

    def first(self, **args: Any) -> Deferred[dict[str, Any]]:
        """Ask the first question, which is answered after the second pass."""
        return self.gateway.asked("top", **args)

    def test_rates(self) -> None:
        """Devices are listed by their lines a second each way, with rates of what they sent and got between two passes. A
        device that is quiet is not listed.
        """
        gateway = self.gateway
        quiet, busy, busier, bytes_only = (gateway.device(name) for name in ("quiet", "busy", "busier", "half a line"))
        for endpoint in (quiet, busy, busier, bytes_only):
            gateway.talk(endpoint, 100, 0)
        answer = self.first()
        self.assertNoResult(answer)
        gateway.talk(busy, 10, 0)
        gateway.talk(busier, 10, 5)
        bytes_only.dataReceived(b"half")
        self.pass_by(FIRST_INTERVAL)
        top = self.successResultOf(answer)
        self.assertEqual([row["device_id"] for row in top["talkers"]], ["busier", "busy", "half a line"])
        self.assertEqual(top["interval"], 1000)
        rates = ("lines_in_rate", "lines_out_rate", "bytes_in_rate", "bytes_out_rate")
        self.assertEqual([top["talkers"][0][rate] for rate in rates], [10, 5, 50, 20])
        self.assertEqual([top["talkers"][2][rate] for rate in rates], [0, 0, 4, 0])
        gateway.talk(busy, 40, 0)
        self.pass_by(INTERVAL)
        top = gateway.ask("top")
        self.assertEqual([(row["device_id"], row["lines_in_rate"]) for row in top["talkers"]], [("busy", 20)])
        self.assertEqual(top["interval"], 2000)

    def test_come_and_gone(self) -> None:
        """A connection that is new since the last pass is listed with all that it has sent. One that has ended is left out, and
        does not change the rates of those after it.
        """
        gateway = self.gateway
        first, second, third, quiet = (gateway.device(name) for name in ("first", "second", "third", "quiet"))
        for endpoint in (first, second, third, quiet):
            gateway.talk(endpoint, 100, 0)
        answer = self.first()
        gateway.talk(first, 3, 0)
        gateway.talk(third, 2, 0)
        gateway.end(second)
        gateway.talk(gateway.device("new"), 1, 0)
        self.pass_by(FIRST_INTERVAL)
        rows = self.successResultOf(answer)["talkers"]
        rates = [(row["device_id"], row["lines_in_rate"]) for row in rows]
        self.assertEqual(rates, [("first", 3), ("third", 2), ("new", 1)])
        gateway.end(first)
        self.assertEqual([row["device_id"] for row in gateway.ask("top")["talkers"]], ["third", "new"])

    def test_limit(self) -> None:
        """There are as many devices as were asked for."""
        for number in range(15):
            self.gateway.device(f"d{number}")
        answers = [self.first(), self.first(limit=3)]
        for endpoint in self.gateway.registry:
            self.gateway.talk(endpoint, 1, 0)  # type: ignore[arg-type]
        self.pass_by(FIRST_INTERVAL)
        self.assertEqual([len(self.successResultOf(answer)["talkers"]) for answer in answers], [10, 3])
        for limit in (0, 101):
            self.failureResultOf(self.gateway.desk.answer("top", {"limit": limit}), BadArgument)

    def test_slowest(self) -> None:
        """The slowest are the connections with most messages that wait, and those whose socket takes no more."""
        gateway, source = self.gateway, Source()
        gateway.device("usual")
        full, _ = gateway.slow_device("full")
        waiting, wire = gateway.slow_device("waiting")
        for endpoint in (full, waiting):
            gateway.send(endpoint, source, b"first")
        gateway.turns()
        gateway.send(waiting, source, b"second")
        held = gateway.device("held")
        for number in (3, 4):
            gateway.send(held, source, b"held", number)
        answer = self.first()
        self.pass_by(FIRST_INTERVAL)
        slowest = self.successResultOf(answer)["slowest"]
        self.assertEqual([(row["device_id"], row["waiting"], row["held"]) for row in slowest], [
            ("held", 0, 2), ("waiting", 1, 0), ("full", 0, 0)
        ])  # fmt: skip
        wire.drained()
        self.assertEqual([row["device_id"] for row in gateway.ask("top")["slowest"]], ["held", "full"])

    def test_stops(self) -> None:
        """Passes stop some seconds after the last question. The next question begins anew, with rates of its own time."""
        gateway = self.gateway
        endpoint = gateway.device()
        self.first()
        self.pass_by(LASTING - 0.5)
        self.assertEqual(len(gateway.clock.getDelayedCalls()), 1)
        self.pass_by(INTERVAL + 0.5)
        self.assertEqual(gateway.clock.getDelayedCalls(), [])
        gateway.talk(endpoint, 100, 0)
        answer = self.first()
        self.assertNoResult(answer)
        self.pass_by(FIRST_INTERVAL)
        self.assertEqual(self.successResultOf(answer)["talkers"], [])

    def test_lasts(self) -> None:
        """Questions keep the passes running."""
        answer = self.first()
        self.pass_by(5)
        self.successResultOf(answer)
        for _ in range(3):
            self.successResultOf(self.gateway.asked("top"))
            self.pass_by(8)

    def test_cancelled(self) -> None:
        """A question that nobody waits for any more is not answered, and does not disturb the others."""
        cancelled, other = self.first(), self.first()
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.pass_by(FIRST_INTERVAL)
        self.successResultOf(other)

    def test_error(self) -> None:
        """After an error of our own the question fails, and the next one begins anew."""
        endpoint = self.gateway.device()
        self.patch(endpoint, "bytes_in", "nonsense")
        answer = self.first()
        self.failureResultOf(answer, TypeError)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        endpoint.bytes_in = 0
        answer = self.first()
        self.pass_by(FIRST_INTERVAL)
        self.successResultOf(answer)

    def test_workers(self) -> None:
        """The lists of several workers become one, by the same order, with the names of the workers."""

        def talker(lines: float, size: float) -> dict[str, Any]:
            return {"lines_in_rate": lines, "lines_out_rate": 1, "bytes_in_rate": size, "bytes_out_rate": 0}

        answers = [
            ("worker-1", {"interval": 1000, "talkers": [talker(5, 1), talker(1, 1)], "slowest": [{"waiting": 1, "held": 0}]}),
            ("worker-2", {"interval": 2000, "talkers": [talker(5, 2)], "slowest": [{"waiting": 0, "held": 3}]}),
        ]
        top = merge_top(answers, {"limit": 2})
        self.assertEqual([row["worker"] for row in top["talkers"]], ["worker-2", "worker-1"])
        self.assertEqual([row["worker"] for row in top["slowest"]], ["worker-2", "worker-1"])
        self.assertEqual(top["interval"], 2000)
        self.assertEqual(merge_top([], {}), {"interval": 0, "talkers": [], "slowest": []})
