"""The parts of `owsla demo` that need no process."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.cli.demo import _plan
from owsla.cli.demo._fleet import GUEST, MOST, Fleet, Manner
from owsla.cli.demo._guide import commands, page_url
from owsla.cli.demo._plan import Plan, free_port, make_plan, make_request
from owsla.cli.demo._queues import RemoveQueues
from owsla.errors import ConfigError

from ..broker.fakes import BrokerTestCase, Result, Server

FOLDER = Path("/tmp/owsla-demo-1")


class FleetTests(SynchronousTestCase):
    def test_count(self) -> None:
        """As many devices can connect as were asked for, each with a name of its own, and at least one talks."""
        for count in (1, 2, 3, 4, 20, MOST):
            devices = list(Fleet(count).devices())
            failing = {Manner.DISTRUSTS, Manner.MISTAKES}
            self.assertEqual(sum(manner not in failing for _, manner in devices), count)
            self.assertEqual(len({name for name, _ in devices}), count + len(failing))
            self.assertIn(("meter-01", Manner.TALKS), devices)

    def test_logins(self) -> None:
        """The login file has those that may connect, and the person."""
        logins = Fleet(20).logins().splitlines()
        self.assertEqual(len(logins), 21)
        self.assertIn(f"{GUEST}:demo", logins)
        self.assertFalse([line for line in logins if line.startswith(("boiler-9", "meter-old"))])

    def test_rate(self) -> None:
        """Many meters talk less often, so that a small machine is not busy."""
        self.assertEqual(Fleet(20).interval, 0.5)
        self.assertEqual(MOST / Fleet(MOST).interval, 400.0)


class QueueTests(BrokerTestCase):
    def test_in_use(self) -> None:
        """The queues that another program uses stay, and the user is told by which queue that is seen."""
        ends: list[tuple[Any, ...]] = []
        server = Server(heartbeat=60_000).ready()
        session: Any = SimpleNamespace(finish=lambda *end: ends.append(end))
        role = RemoveQueues(server.clock, server.turn, session, node="0123abcd")
        queue = "owsla-demo.to_device"
        server.refusals[f"delete {queue}", False] = (406, f"PRECONDITION_FAILED - queue '{queue}' in vhost '/' in use")
        Result(role.up(server.client))
        server.settle()
        deleted = [fields["queue"] for fields in server.called("queue.delete")]
        self.assertEqual(deleted, [f"{queue}.0123abcd", queue])
        text = f"the other queues of the demo stay at the broker, since another program uses {queue}"
        self.assertEqual(ends, [(0, text)])


class PlanTests(SynchronousTestCase):
    def test_ports(self) -> None:
        """The next port that is free is taken in place of a busy one; one that was asked for must be free."""
        with socket.socket() as sock:
            sock.bind((_plan.HOST, 0))
            sock.listen()
            busy = sock.getsockname()[1]
            self.assertNotEqual(free_port(busy, set()), busy)
            self.assertNotIn(free_port(busy, {busy + 1}), (busy, busy + 1))
            with self.assertRaisesRegex(ConfigError, f"--port: 127.0.0.1 port {busy}: address already in use"):
                make_plan(make_request(devices=1, port=busy, http_port=None, broker=None))
            self.assertTrue(Plan(1, busy, 0, 0).ports_taken())
        with self.assertRaisesRegex(ConfigError, "--http-port: 7000 is the port for devices"):
            make_request(devices=1, port=7000, http_port=7000, broker=None)

    def test_own_broker(self) -> None:
        """The password of a broker of the user is in a file, and in no argument; the queues have names of their own."""
        request = make_request(devices=1, port=None, http_port=None, broker="amqp://me:s3cret@host/")
        plan = Plan(1, 7000, 7001, 0, request.broker)
        words = [*plan.gateway(FOLDER), *plan.echo(FOLDER)]
        self.assertFalse([word for word in words if "s3cret" in word])
        self.assertNotIn("s3cret", repr(plan))
        self.assertEqual(plan.files("token")["broker-password"], "s3cret\n")
        self.assertIn("--from-device=owsla-demo.from_device", words)
        self.assertFalse([word for word in words if "embedded" in word])
        with self.assertRaisesRegex(ConfigError, "--broker: the URL of a broker has the form"):
            make_request(devices=1, port=None, http_port=None, broker="host")


class GuideTests(SynchronousTestCase):
    def test_commands(self) -> None:
        """The commands name devices that exist, and the program with quotes where a shell needs them."""
        plan = Plan(1, 7000, 7001, 7002)
        lines = [line for _, line in commands(plan, FOLDER, ["/my home/owsla"])]
        self.assertEqual(lines[0], "'/my home/owsla' devices --control /tmp/owsla-demo-1/owsla.sock")
        self.assertIn("'/my home/owsla' send --device meter-01 open --broker amqp://127.0.0.1:7002", lines)
        self.assertFalse([line for line in lines if "door-7" in line or "printer-1" in line])
        self.assertEqual(page_url(plan, "t"), "http://127.0.0.1:7001/#token=t")
