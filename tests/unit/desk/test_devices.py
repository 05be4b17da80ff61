"""The list of connections: rows, filters, pages of one node and of several workers, and slices."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError
from twisted.trial.unittest import SynchronousTestCase

from owsla.desk import SORTS, BadArgument
from owsla.desk._devices import merge_devices
from owsla.desk._paging import read_page
from owsla.device.protocol import DeviceProtocol
from owsla.device.sliced_check import SLICE

from ..device._fakes import Source
from ._gateway import Gateway


class RowTests(SynchronousTestCase):
    def test_row(self) -> None:
        """A row has all that is known of a connection; times are in milliseconds since the epoch."""
        gateway = Gateway()
        gateway.clock.advance(5)
        endpoint = gateway.device("d1", peer="192.0.2.9:4711")
        gateway.later(1)
        gateway.talk(endpoint, 3, 0)
        gateway.later(1)
        gateway.talk(endpoint, 0, 2)
        connection_id = endpoint.connection_id.decode()
        self.assertEqual(
            gateway.row(endpoint),
            {
                "connection_id": connection_id,
                "device_id": "d1",
                "node": connection_id[:8],
                "worker": None,
                "peer": "192.0.2.9:4711",
                "door": "default",
                "tls": "TLSv1.3",
                "since": 1_000_005_000,
                "lines_in": 3,
                "lines_out": 2,
                "bytes_in": 15,
                "bytes_out": 8,
                "last_in": 1_000_006_000,
                "last_out": 1_000_007_000,
                "paused": [],
                "slow_since": None,
                "waiting": 0,
                "waiting_bytes": 0,
                "held": 0,
                "closing": None,
            },
        )

    def test_states(self) -> None:
        """A row says why a connection is not read, since when its socket is full, what waits and why it closes; the list can be
        limited to each of these states.
        """
        gateway = Gateway()
        gateway.device("usual")
        source = Source()
        slow, _ = gateway.slow_device("slow")
        gateway.send(slow, source, b"first")
        gateway.turns()
        gateway.later(3)
        gateway.send(slow, source, b"second")
        held = gateway.device("held")
        gateway.send(held, source, b"1", 1)
        closing = gateway.device("closing")
        closing.close("enough")
        paused = gateway.device("paused")
        paused.stall()
        row = gateway.row(slow)
        self.assertEqual((row["slow_since"], row["waiting"], row["waiting_bytes"]), (1_000_000_000, 1, 6))
        self.assertEqual(gateway.row(held)["held"], 1)
        self.assertEqual(gateway.row(closing)["closing"], "enough")
        self.assertEqual(gateway.row(paused)["paused"], ["broker"])
        for state in ("slow", "held", "closing", "paused"):
            found = gateway.ask("devices", state=state)
            self.assertEqual([row["device_id"] for row in found["devices"]], [state])
            self.assertEqual(found["total"], 1)

    def test_slow_with_progress(self) -> None:
        """A connection is slow since its socket was full first, however often the device has taken a little since."""
        gateway = Gateway(write_timeout=2)
        slow, wire = gateway.slow_device("slow")
        wire.untaken = 100
        gateway.send(slow, Source(), b"first")
        gateway.turns()
        wire.untaken = 99
        gateway.later(3)
        self.assertEqual(gateway.row(slow)["slow_since"], 1_000_000_000)
        wire.drained()
        self.assertIsNone(gateway.row(slow)["slow_since"])

    def test_clock_set(self) -> None:
        """The time of a connection stays what it is to the millisecond, and follows when the clock of the system is set."""
        gateway = Gateway()
        endpoint = gateway.device()
        gateway.epoch += 0.05
        self.assertEqual(gateway.row(endpoint)["since"], 1_000_000_000)
        gateway.epoch += 3600
        self.assertEqual(gateway.row(endpoint)["since"], 1_003_600_050)


class FilterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway = Gateway()
        self.meter = self.gateway.device("Meter-x17", peer="192.0.2.7:1000")
        self.gateway.clock.advance(1)
        self.other = self.gateway.device("pump-x3", peer="[2001:db8::17]:2000")
        self.gateway.clock.advance(1)
        self.unnamed = self.gateway.device(None, peer="192.0.2.8:3000", factory=self.gateway.door("plain"))

    def found(self, **args: Any) -> list[DeviceProtocol]:
        rows = {endpoint.connection_id.decode(): endpoint for endpoint in (self.meter, self.other, self.unnamed)}
        answer = self.gateway.ask("devices", **args)
        self.assertEqual(answer["total"], len(answer["devices"]))
        return [rows[row["connection_id"]] for row in answer["devices"]]

    def test_query(self) -> None:
        """The query is a part of the device id, the connection id or the address, in any case."""
        self.assertEqual(self.found(query="mETER"), [self.meter])
        self.assertEqual(self.found(query="-X"), [self.meter, self.other])
        self.assertEqual(self.found(query=":3000"), [self.unnamed])
        self.assertEqual(self.found(query=self.other.connection_id.decode().upper()[3:]), [self.other])
        self.assertEqual(self.found(query="\ud800nothing"), [])
        self.assertEqual(self.found(query=""), [self.meter, self.other, self.unnamed])

    def test_door(self) -> None:
        """A door selects its connections, together with the other conditions."""
        self.assertEqual(self.found(door="plain"), [self.unnamed])
        self.assertEqual(self.found(door="default", query="192.0.2"), [self.meter])
        self.assertEqual(self.found(door="none"), [])

    def test_lost(self) -> None:
        """A connection that ends while the list is read is left out."""
        answer = self.gateway.desk.answer("devices", {})
        self.gateway.end(self.other)
        for _ in range(10):
            self.gateway.turns()
        rows = self.successResultOf(answer)["devices"]
        self.assertEqual([row["device_id"] for row in rows], ["Meter-x17", None])

    def test_lost_after_the_look(self) -> None:
        """So is one that has ended between the look at it and its row."""
        since = self.gateway.services.slow.since

        def end_another(connection: DeviceProtocol) -> float | None:
            if self.unnamed.transport is not None:
                self.gateway.end(self.unnamed)
            return since(connection)

        self.patch(self.gateway.services.slow, "since", end_another)
        answer = self.gateway.ask("devices")
        self.assertEqual([row["device_id"] for row in answer["devices"]], ["Meter-x17", "pump-x3"])

    def test_bad_arguments(self) -> None:
        """An argument that cannot be used is an error that says which values can be."""
        first = self.gateway.ask("devices", limit=1)["next"]
        for message, args in (
            ("`sort` is one of since, device_id", {"sort": "size"}),
            ("`state` is one of paused, slow", {"state": "odd"}),
            ("`limit` is a number from 1 to 1000", {"limit": 0}),
            ("`limit` is a number from 1 to 1000", {"limit": 1001}),
            ("`limit` is a number from 1 to 1000", {"limit": "1"}),
            ("`after` is not a cursor of a list sorted by peer", {"sort": "peer", "after": first}),
            ("`after` is not a cursor of a list sorted by since", {"after": "!"}),
            ("`after` is not a cursor of a list sorted by since", {"after": "W10"}),
        ):
            error = self.failureResultOf(self.gateway.desk.answer("devices", args), BadArgument)
            self.assertIn(message, str(error.value))


def everything(gateway: Gateway, sort: str, limit: int) -> list[list[dict[str, Any]]]:
    """Return all pages."""
    pages, after = [], None
    while True:
        answer = gateway.ask("devices", sort=sort, limit=limit, after=after)
        pages.append(answer["devices"])
        assert answer["total"] == len(gateway.registry)
        after = answer["next"]
        if after is None:
            return pages


def populate(gateway: Gateway, count: int, seed: int = 1) -> None:
    """Connect devices that differ, or are alike, in each of the columns."""
    chance = random.Random(seed)
    for number in range(count):
        gateway.clock.advance(chance.choice((0, 0.5)))
        device_id = None if number % 5 == 0 else f"d{chance.randrange(count)}"
        endpoint, _ = gateway.connect(
            room=chance.choice((0, 10**6)), device_id=device_id, peer=f"192.0.2.{chance.randrange(9)}:{number}"
        )
        gateway.talk(endpoint, chance.randrange(3), chance.randrange(3))
        if chance.random() < 0.3:
            gateway.send(endpoint, Source(), b"held", 7)


class PagingTests(SynchronousTestCase):
    def test_pages(self) -> None:
        """The pages together have each connection once, sorted by any column, either way; unknown values are the least."""
        gateway = Gateway()
        populate(gateway, 40)
        ids = {endpoint.connection_id.decode() for endpoint in gateway.registry}
        for column in SORTS:
            for sort in (column, f"-{column}"):
                pages = everything(gateway, sort, 7)
                self.assertEqual([len(page) for page in pages], [7, 7, 7, 7, 7, 5])
                rows = [row for page in pages for row in page]
                self.assertEqual({row["connection_id"] for row in rows}, ids)
                unknown = "" if SORTS[column] is str else -1
                keys = [(unknown if row[column] is None else row[column], row["connection_id"]) for row in rows]
                self.assertEqual(keys, sorted(keys, reverse=sort.startswith("-")), sort)

    def test_last_page(self) -> None:
        """There is no cursor behind the last row, also if that fills its page."""
        gateway = Gateway()
        populate(gateway, 6)
        self.assertEqual([len(page) for page in everything(gateway, "since", 3)], [3, 3])
        self.assertEqual(len(everything(gateway, "since", 1000)), 1)

    def test_connections_come_and_go(self) -> None:
        """A page that follows does not depend on the last row of the one before being there still."""
        gateway = Gateway()
        endpoints = [gateway.device(f"d{number}") for number in range(9)]
        first = gateway.ask("devices", sort="device_id", limit=3)
        gateway.end(endpoints[2])
        gateway.device("d2a")
        second = gateway.ask("devices", sort="device_id", limit=3, after=first["next"])
        self.assertEqual([row["device_id"] for row in second["devices"]], ["d2a", "d3", "d4"])


class MergeTests(SynchronousTestCase):
    def merged(self, gateways: list[Gateway], sort: str, limit: int) -> list[dict[str, Any]]:
        """Return the rows of all pages over several workers."""
        rows: list[dict[str, Any]] = []
        after = None
        while True:
            args = {"sort": sort, "limit": limit, "after": after}
            answers = [(f"worker-{number}", gateway.ask("devices", **args)) for number, gateway in enumerate(gateways)]
            answer = merge_devices(answers, args)
            self.assertEqual(answer["total"], sum(len(gateway.registry) for gateway in gateways))
            self.assertLessEqual(len(answer["devices"]), limit)
            rows += answer["devices"]
            after = answer["next"]
            if after is None:
                return rows

    def test_several_workers(self) -> None:
        """Pages over several workers have each connection once, in order, with the name of its worker."""
        gateways = [Gateway() for _ in range(3)]
        for number, gateway in enumerate(gateways):
            populate(gateway, 5 + 10 * number, seed=number)
        for sort in ("device_id", "-lines_in", "-last_out", "peer"):
            rows = self.merged(gateways, sort, 4)
            self.assertEqual(len(rows), 45)
            self.assertEqual(len({row["connection_id"] for row in rows}), 45)
            column = sort.removeprefix("-")
            unknown = "" if SORTS[column] is str else -1
            keys = [(unknown if row[column] is None else row[column], row["connection_id"]) for row in rows]
            self.assertEqual(keys, sorted(keys, reverse=sort.startswith("-")))
            owners = {
                each.connection_id.decode(): number for number, gateway in enumerate(gateways) for each in gateway.registry
            }
            self.assertEqual({row["worker"] for row in rows}, {"worker-0", "worker-1", "worker-2"})
            for row in rows:
                self.assertEqual(row["worker"], f"worker-{owners[row['connection_id']]}")

    @given(st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=4), st.integers(1, 5), st.booleans())
    def test_rows_left_out(self, numbers: list[list[int]], limit: int, descending: bool) -> None:
        """No row is skipped although workers leave rows out, those of connections that have ended meanwhile."""
        sort = "-lines_in" if descending else "lines_in"
        order = {"sort": sort, "limit": limit}
        rows = [
            [{"lines_in": value, "connection_id": f"{worker}-{place}"} for place, value in enumerate(values)]
            for worker, values in enumerate(numbers)
        ]
        left_out = {f"{worker}-{place}" for worker in range(4) for place in range(12) if (worker + place) % 3 == 0}

        def page(own: list[dict[str, Any]], after: str | None) -> dict[str, Any]:
            """Return the page of a worker."""
            place = read_page({**order, "after": after})
            left = [row for row in own if place.after is None or place.order.precedes(place.after, place.order.key(row))]
            answer = merge_devices([("w", {"devices": left, "total": len(left), "next": None})], order)
            return {**answer, "devices": [row for row in answer["devices"] if row["connection_id"] not in left_out]}

        seen: list[str] = []
        after = None
        for _ in range(100):
            answer = merge_devices([(f"w{n}", page(own, after)) for n, own in enumerate(rows)], {**order, "after": after})
            seen += [row["connection_id"] for row in answer["devices"]]
            after = answer["next"]
            if after is None:
                break
        expected = sorted(
            ((row["lines_in"], row["connection_id"]) for own in rows for row in own if row["connection_id"] not in left_out),
            reverse=descending,
        )
        self.assertEqual(seen, [connection_id for _, connection_id in expected])


class SliceTests(SynchronousTestCase):
    def test_slices(self) -> None:
        """A list over many connections is made in slices, between which the reactor turns: all lists together take one slice of
        a turn.
        """
        gateway = Gateway()
        for _ in range(640):
            gateway.device()
        calls: list[float] = []
        looks: list[float] = []
        call_later, seconds = gateway.clock.callLater, gateway.clock.seconds

        def count(delay: float, call: Any, *args: Any) -> Any:
            calls.append(delay)
            return call_later(delay, call, *args)

        def look() -> float:
            looks.append(gateway.clock.rightNow)
            gateway.clock.rightNow += SLICE / 5  # so long does a step take
            return float(seconds())

        self.patch(gateway.clock, "callLater", count)
        self.patch(gateway.clock, "seconds", look)
        answers = [gateway.desk.answer("devices", {}) for _ in range(2)]
        gateway.clock.advance(0)
        for answer in answers:
            self.assertEqual(self.successResultOf(answer)["total"], 640)
        self.assertEqual(set(calls), {0})
        # 20 steps over connections and 13 over rows for each list, and five steps a turn for both.
        self.assertIn(len(calls), range(2 * 33 // 5, 2 * 33 // 4 + 2))

    def test_abandoned(self) -> None:
        """A list that nobody waits for any more is not made."""
        gateway = Gateway()
        answer = gateway.desk.answer("devices", {})
        self.assertEqual(len(gateway.clock.getDelayedCalls()), 1)
        answer.cancel()
        self.failureResultOf(answer, CancelledError)
        gateway.turns()
        self.assertEqual(gateway.clock.getDelayedCalls(), [])
        first, waiting, last = (gateway.desk.answer("devices", {}) for _ in range(3))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        gateway.turns()
        for each in (first, last):
            self.successResultOf(each)
