"""The commands that ask a running gateway: what they request, print and return."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from owsla.cli import _devices, _events, _table
from owsla.cli._control import at_socket
from owsla.cli._events import follow
from owsla.supervision_tree import render

from ._fake_gateway import Reply, connection, event, sent
from ._running import CommandTestCase


def always(status: int, answer: Any) -> Callable[[str, Mapping[str, str]], Reply]:
    return lambda rest, query: (status, answer)


class OperatorTestCase(CommandTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.fake = self.gateway()

    def answer(self, route: str, answer: Any, status: int = 200) -> None:
        self.fake.routes[route] = always(status, answer)

    def on_terminal(self, columns: int = 80, rows: int = 24) -> None:
        """Make standard output a terminal of a size, as far as a command sees."""
        for module in (_table, _devices):
            self.patch(module, "terminal", lambda: os.terminal_size((columns, rows)))

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.fake.requests]


class DevicesTests(OperatorTestCase):
    def serve(self, count: int) -> None:
        """Serve a number of devices, in pages; the cursor is the number of the next."""
        rows = [connection(number) for number in range(1, count + 1)]

        def page(rest: str, query: Mapping[str, str]) -> Reply:
            begin, limit = int(query.get("after", 0)), int(query["limit"])
            end = begin + limit
            after = str(end) if end < count else None
            return 200, {"devices": rows[begin:end], "total": count, "next": after, "missing": []}

        self.fake.routes["GET /api/v1/devices"] = page

    def test_pipe(self) -> None:
        """A pipe gets all devices, page by page, with all columns and a heading."""
        self.serve(2500)
        lines = self.output("devices").splitlines()
        self.assertEqual(len(lines), 2501)
        self.assertEqual(lines[0].split(), [
            "DEVICE", "STATE", "AGE", "IN", "LAST-IN", "OUT", "LAST-OUT", "BYTES-IN", "BYTES-OUT", "WAITING", "HELD", "PEER",
            "CONNECTION", "DOOR", "WORKER", "TLS",
        ])  # fmt: skip
        self.assertEqual(lines[1].split()[0], "door-1")
        self.assertEqual(len(self.paths), 3)

    def test_terminal(self) -> None:
        """A terminal gets one screen, and is told how many more there are; --all gives the rest, --limit so many."""
        self.serve(2500)
        self.on_terminal()
        status, out, err = self.run_it("devices")
        self.assertEqual((status, out.count("\n")), (0, 1 + 21))
        self.assertEqual(err, "owsla devices: 2,479 more of 2,500: --all lists them, QUERY selects\n")
        self.assertLessEqual(max(map(len, out.splitlines())), 80)
        self.assertEqual(self.run_it("devices", "--all")[1].count("\n"), 2501)
        self.assertEqual(self.run_it("devices", "--limit=1200")[1].count("\n"), 1201)
        self.assertEqual(self.run_it("devices", "--limit=3", "--json")[1].count("\n"), 3)

    def test_nothing(self) -> None:
        """On a terminal it is said that there is nothing; a pipe gets the heading alone, and with --json nothing."""
        self.serve(0)
        self.assertEqual(self.output("devices", "--json"), "")
        self.assertEqual(self.output("devices").count("\n"), 1)
        self.on_terminal()
        self.assertEqual(self.run_it("devices"), (0, "", "owsla devices: no device is connected\n"))
        self.assertEqual(self.run_it("devices", "x"), (0, "", "owsla devices: no connection matches\n"))

    def test_json(self) -> None:
        """With --json each object of the gateway is a line, unchanged, in ASCII."""
        row = connection(device_id="\x1b[2J日", unknown_field=[1, None])
        self.answer("GET /api/v1/devices", {"devices": [row], "total": 1, "next": None})
        out = self.output("devices", "--json")
        self.assertTrue(out.isascii() and out.endswith("\n"))
        self.assertEqual(json.loads(out), row)

    def test_selection(self) -> None:
        """Query, door, state and order are those of the request; what is not given is not sent."""
        self.serve(1)
        self.output("devices", "a b&c", "--door=plain", "--state=slow", "--sort=lines_in", "--reverse", "--limit=5")
        self.assertEqual(self.paths, ["GET /api/v1/devices?query=a+b%26c&door=plain&state=slow&sort=-lines_in&limit=5"])
        self.output("devices", "--sort=since")
        self.assertEqual(self.paths[1], "GET /api/v1/devices?sort=since&limit=1000")
        self.assertIn("--reverse: use --sort too", self.refused("devices", "--reverse"))

    def test_states(self) -> None:
        """What holds a connection up is one word, with all reasons."""
        rows = [
            connection(1),
            connection(2, paused=["broker", "rate"], slow_since=1, held=2, waiting=7, waiting_bytes=9),
            connection(3, closing="kicked"),
        ]
        self.answer("GET /api/v1/devices", {"devices": rows, "total": 3, "next": None})
        states = [line.split()[1] for line in self.output("devices").splitlines()[1:]]
        self.assertEqual(states, ["-", "paused:broker+rate,slow,held", "closing"])

    def test_hostile_ids(self) -> None:
        """An id cannot act on the terminal, end its line, or move the columns."""
        rows = [connection(1, device_id="\x1b[31m\n\u202ex y"), connection(2, device_id="日本語" * 40), connection(3)]
        self.answer("GET /api/v1/devices", {"devices": rows, "total": 3, "next": None})
        self.on_terminal(70)
        out = self.run_it("devices")[1]
        self.assertEqual(out.count("\n"), 4)
        self.assertTrue(out.replace("\n", "").isprintable())
        self.assertIn("…", out)

    def test_missing(self) -> None:
        """A worker that did not answer is named, and the status is 1."""
        self.answer("GET /api/v1/devices", {"devices": [connection()], "total": 1, "next": None, "missing": ["worker-2"]})
        status, out, err = self.run_it("devices")
        self.assertEqual((status, out.count("\n")), (1, 2))
        self.assertEqual(err, "owsla devices: no answer in time from worker-2: what they know is not shown\n")


class DeviceTests(OperatorTestCase):
    def test_details(self) -> None:
        """All connections of the device are described, with findings and the last ends."""
        busy = connection(
            2, worker="worker-2", tls=None, last_in=1_790_000_000_000, paused=["share"], slow_since=1_790_000_000_000,
            waiting=3, waiting_bytes=1200, held=1, closing="replaced", findings=["It reads nothing."],
        )  # fmt: skip
        self.answer("GET /api/v1/devices/", {"connections": [connection(findings=[]), busy], "ends": [event()], "missing": []})
        out = self.output("device", "door/7 ü")
        self.assertEqual(self.paths, ["GET /api/v1/devices/door%2F7%20%C3%BC"])
        for text in (
            f"device door-1 on connection {connection()['connection_id']}\n",
            "  peer       192.0.2.7:40001\n",
            "  door       main, TLSv1.3\n",
            "  lines in   1,204 (93kB), none yet\n",
            "  door       main, without TLS\n",
            "  node       01234567, worker-2\n",
            "  paused     share: its share of the window is unconfirmed\n",
            "  slow       its socket has taken nothing more for ",
            "  waiting    3 messages (1.2kB) for its socket\n",
            "  held       1 message for a missing to_device_seq\n",
            "  closing    replaced\n",
            "  ! It reads nothing.\n",
            "last ends, newest first:\n",
            " ago: 2026-09-21T",
            "device-disconnected device door-1 has gone\n",
        ):
            self.assertIn(text, out)

    def test_repeated(self) -> None:
        """A refusal that is repeated is one line, with the number and the time in which that was."""
        last = {**event(), "count": 12, "first": event()["time"] - 60_000}
        self.answer("GET /api/v1/devices/", {"connections": [], "ends": [last]})
        self.assertIn(" ago, 12 times in 1m00s: ", self.output("device", "door-1"))

    def test_not_connected(self) -> None:
        """A device that has gone is known by its last ends."""
        self.answer("GET /api/v1/devices/", {"connections": [], "ends": [event()]})
        self.assertTrue(self.output("device", "door-1").startswith("door-1 is not connected\nlast ends"))

    def test_unknown(self) -> None:
        """An unknown device is an error that says what was searched."""
        self.answer("GET /api/v1/devices/", {"error": "No connection has it.", "missing": []}, 404)
        self.assertEqual(
            self.refused("device", "x"),
            f"owsla device: {self.socket}: nothing is known of 'x': no connection has it as its connection id, device id or "
            "address, and none of the last ends and refusals that the gateway remembers",
        )
        self.answer("GET /api/v1/devices/", {"error": "No connection has it.", "missing": ["worker-1"]}, 404)
        status, out, err = self.run_it("device", "x")
        self.assertEqual((status, out, err.count("\n")), (1, "", 2))
        self.assertIn("no answer in time from worker-1", err)

    def test_json(self) -> None:
        """With --json it is the object of the gateway, on one line."""
        answer = {"connections": [connection(findings=["a"])], "ends": [], "missing": []}
        self.answer("GET /api/v1/devices/", answer)
        out = self.output("device", "x", "--json")
        self.assertEqual((out.count("\n"), json.loads(out)), (1, answer))


class KickTests(OperatorTestCase):
    def test_one(self) -> None:
        """The connection that was closed is named."""
        self.answer("DELETE /api/v1/devices/", {"closed": ["abc"], "missing": []})
        self.assertEqual(self.output("kick", "door-1"), "closed abc\n")
        self.assertEqual(json.loads(self.output("kick", "door-1", "--all", "--json")), {"closed": ["abc"], "missing": []})
        self.assertEqual(self.paths, ["DELETE /api/v1/devices/door-1", "DELETE /api/v1/devices/door-1?all=1"])

    def test_several(self) -> None:
        """If several match, none is closed; the error names them, so that one can be chosen."""
        matches = [connection(1, device_id="d"), connection(2, device_id="d")]
        self.answer("DELETE /api/v1/devices/", {"error": "2 match", "matches": matches}, 409)
        status, out, err = self.run_it("kick", "d")
        self.assertEqual((status, out), (1, ""))
        self.assertEqual(err.splitlines(), [
            "owsla kick: 2 connections match 'd': name one by its connection id, or use --all",
            f"owsla kick: {matches[0]['connection_id']} device d peer 192.0.2.7:40001",
            f"owsla kick: {matches[1]['connection_id']} device d peer 192.0.2.7:40002",
        ])  # fmt: skip

    def test_very_many(self) -> None:
        """Of very many that match some are named, with the number of the others."""
        matches = [connection(number) for number in range(1500)]
        self.answer("DELETE /api/v1/devices/", {"error": "1500 match", "matches": matches}, 409)
        lines = self.run_it("kick", "192.0.2.7")[2].splitlines()
        self.assertEqual(lines[-1], "owsla kick: and 1,480 more, which 'owsla devices' lists")
        self.assertEqual(len(lines), 22)

    def test_unknown(self) -> None:
        """An unknown device is an error."""
        self.answer("DELETE /api/v1/devices/", {"error": "none"}, 404)
        self.assertEqual(
            self.refused("kick", "x"),
            f"owsla kick: {self.socket}: no connection has 'x' as its connection id, device id or address",
        )


class EventsTests(OperatorTestCase):
    def test_last(self) -> None:
        """The last events are lines; a warning is marked, and a worker is named."""
        events = [event(), event(2, warning=True, worker="worker-1", text="two\nlines \x1b")]
        self.answer("GET /api/v1/events", {"events": events, "next": "a-2", "lost": 0, "missing": []})
        first, second = self.output("events").splitlines()
        self.assertRegex(first, r"^2026-09-21T\d\d:\d\d:20 device-disconnected device door-1 has gone$")
        self.assertTrue(second.endswith(" !device-disconnected worker-1: two lines \\x1b"), second)
        self.assertEqual([json.loads(line) for line in self.output("events", "--json").splitlines()], events)

    def test_selection(self) -> None:
        """Kinds, query, warnings and the number are those of the request."""
        self.answer("GET /api/v1/events", {"events": [], "next": "a-2", "lost": 0, "missing": []})
        self.output("events", "192.0.2.7", "--kind=a", "--kind=b", "--warnings", "--limit=7")
        self.assertEqual(self.paths, ["GET /api/v1/events?query=192.0.2.7&kind=a&kind=b&warnings=1&limit=7"])

    def test_follow(self) -> None:
        """Following goes on after the last event shown when the stream ends, and tells of events that were lost."""
        self.patch(_events, "FIRST_PAUSE", 0.01)
        streams = iter([
            (200, iter([b":\n\n", sent(event(3), "event", "a-4"), sent({"text": "the gateway stops"}, "end")])),
            (503, {"error": "There are 32 streams open."}),
            (200, iter([sent({"lost": 7}, "lost"), sent(event(4), "event", "b-1")])),
            (500, {"error": "This could not be answered."}),
        ])  # fmt: skip
        self.fake.routes["GET /api/v1/events"] = lambda rest, query: (
            (200, {"events": [event(2)], "next": "a-3", "lost": 0}) if "limit" in query else next(streams)
        )
        status, out, err = self.run_it("events", "--follow", "--warnings", "--json")
        self.assertEqual([json.loads(line) for line in out.splitlines()], [event(2), event(3), event(4)])
        self.assertEqual(status, 1)
        self.assertEqual([line.replace(f"{self.socket}: ", "") for line in err.splitlines()], [
            "owsla events: the gateway has ended the stream; trying again",
            "owsla events: connected again",
            "owsla events: 7 events were forgotten before they were read",
            "owsla events: the gateway has ended the stream; trying again",
            "owsla events: This could not be answered.",
        ])  # fmt: skip
        self.assertEqual(
            [headers.get("Last-Event-ID") for _, headers in self.fake.requests], [None, "a-3", "a-4", "a-4", "b-1"]
        )

    def test_restart(self) -> None:
        """While there is no gateway, following tries again, and says so once."""
        self.patch(_events, "FIRST_PAUSE", 0.01)
        self.patch(_events, "LONGEST_PAUSE", 0.01)
        self.fake.close()
        os.unlink(self.socket)
        seen: list[Any] = []
        attempts = threading.Semaphore(0)

        class Enough(Exception):
            pass

        def show(shown: Any) -> None:
            seen.append(shown)
            raise Enough

        def restart() -> None:
            for _ in range(5):
                attempts.acquire()
            # The command may ask as soon as the gateway listens.
            self.fake = self.gateway({"GET /api/v1/events": lambda rest, query: (200, iter([sent(event(9), "event", "c-1")]))})

        thread = threading.Thread(target=restart)
        thread.start()
        said: list[str] = []
        self.patch(_events, "say", lambda name, text: said.append(text))
        sleep = time.sleep

        def counted(seconds: float) -> None:
            attempts.release()
            sleep(seconds)

        self.patch(time, "sleep", counted)
        with self.assertRaises(Enough):
            follow(at_socket(self.socket), {}, "a-7", show)
        thread.join()
        self.assertEqual(seen, [event(9)])
        self.assertEqual(len(said), 2)
        self.assertIn("no such socket", said[0])
        self.assertEqual(self.fake.requests[0][1]["Last-Event-ID"], "a-7")


class TraceTests(OperatorTestCase):
    def record(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"time": 1_790_000_000_125, "kind": kind, "connection_id": "c-1", "device_id": "d", "size": None, "seq": None,
                "text": None, **fields}  # fmt: skip

    def serve(self, *messages: bytes) -> None:
        self.fake.routes["GET /api/v1/trace/"] = lambda rest, query: (200, iter(messages))

    def test_records(self) -> None:
        """Records are lines with time, direction, size, number and text; a change of the connection is a line of its own."""
        records = [
            self.record("event", text="connected"),
            self.record("in", size=5, seq=1, body="hel\x1b"),
            self.record("out", size=2, body_base64="//8="),
            self.record("ack", seq=1, connection_id="c-2"),
        ]
        self.serve(
            sent({"connections": [], "missing": []}, "connections"),
            *(sent(record, "record") for record in records),
            sent({"connections": [], "missing": []}, "connections"),
            sent({"dropped": 1200}, "dropped"),
            sent({"text": "the gateway stops"}, "end"),
        )
        status, out, err = self.run_it("trace", "d", "--minutes=3", "--bodies")
        self.assertEqual(self.paths, ["GET /api/v1/trace/d?minutes=3&bodies=1"])
        lines = [line[13:] if line[0].isdigit() else line for line in out.splitlines()]
        self.assertEqual(lines, [
            "-- connection c-1 of device d",
            "event      -      -  connected",
            "in         5      1  hel\\x1b",
            "out        2      -  \\xff\\xff",
            "-- connection c-2 of device d",
            "ack        -      1",
        ])  # fmt: skip
        self.assertEqual((status, err.replace(f"{self.socket}: ", "").splitlines()), (1, [
            "owsla trace: no connection has 'd' now; waiting for the next one",
            "owsla trace: no connection has 'd' now; waiting for the next one",
            "owsla trace: 1,200 records are missing: there were more than the gateway keeps",
            "owsla trace: the trace has ended early: the gateway stops",
        ]))  # fmt: skip
        out = self.run_it("trace", "d", "--json")[1]
        self.assertEqual([json.loads(line) for line in out.splitlines()], records)

    def test_end(self) -> None:
        """At the end of its minutes a trace ends with status 0."""
        self.serve(sent({"text": "the time of the trace is over"}, "end"))
        clock = iter([0.0, 60.0])
        with patch("owsla.cli._trace.time", SimpleNamespace(monotonic=lambda: next(clock))):
            self.assertEqual(self.output("trace", "d", "--minutes=1"), "")


class ReloadTests(OperatorTestCase):
    def test_refused(self) -> None:
        """A reload that changes nothing is an error that says why."""
        self.answer("POST /api/v1/reload", {"error": "owsla.toml: prot: no such option"}, 409)
        self.assertEqual(self.refused("reload"), f"owsla reload: {self.socket}: owsla.toml: prot: no such option")


class TreeTests(OperatorTestCase):
    def test_tree(self) -> None:
        """The tree comes over the socket, too; with --json as it is."""
        tree: Any = {"id": "owsla", "type": "supervisor", "restart": None, "state": "running", "restarts": 0, "uptime": 1.0,
                "failure": None, "children": []}  # fmt: skip
        self.answer("GET /tree", tree)
        self.assertEqual(self.output("tree"), render(tree) + "\n")
        self.assertEqual(json.loads(self.output("tree", "--json")), tree)
