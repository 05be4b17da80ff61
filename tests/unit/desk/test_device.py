"""Details of a device: found by each of its names, with findings, last ends, and what refuses it."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from owsla.config.deny_list import parse_deny_list
from owsla.desk import BadArgument
from owsla.desk._device import merge_device
from owsla.desk._lookup import PeerAddress, read_address
from owsla.device.protocol import DeviceProtocol

from ..device._fakes import Source
from ._gateway import Gateway


class LookupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway = Gateway()
        self.first = self.gateway.device("d1", peer="192.0.2.7:1000")
        self.gateway.clock.advance(1)
        self.second = self.gateway.device("d1", peer="[2001:db8::7]:1000")
        self.gateway.clock.advance(1)
        self.third = self.gateway.device(None, peer="192.0.2.7:3000")

    def found(self, text: str) -> list[DeviceProtocol]:
        answer = self.gateway.ask("device", id=text)
        self.assertEqual(answer["total"], len(answer["connections"]))
        endpoints = {endpoint.connection_id.decode(): endpoint for endpoint in (self.first, self.second, self.third)}
        return [endpoints[row["connection_id"]] for row in answer["connections"]]

    def test_names(self) -> None:
        """A device is found by connection id in any case, by device id, or by address with a port or without; the newest
        connection is the first.
        """
        self.assertEqual(self.found(self.third.connection_id.decode().upper()), [self.third])
        self.assertEqual(self.found("d1"), [self.second, self.first])
        self.assertEqual(self.found("192.0.2.7"), [self.third, self.first])
        self.assertEqual(self.found("192.0.2.7:1000"), [self.first])
        self.assertEqual(self.found("2001:DB8:0::7"), [self.second])
        for text in ("d2", "192.0.2.8", "192.0.2.7:1", "d", "00000000-0000-8000-8000-000000000000", "\ud800"):
            self.assertEqual(self.found(text), [], text)

    def test_device_id_like_another_name(self) -> None:
        """A device id that has the form of a connection id, or of an address, is found."""
        for device_id in ("00000000-0000-8000-8000-000000000000", "192.0.2.7"):
            self.second = self.gateway.device(device_id)
            self.assertEqual(self.found(device_id), [self.second])

    def test_many_at_an_address(self) -> None:
        """Of many connections from one address the newest hundred are shown."""
        last = [self.gateway.device(peer=f"192.0.2.99:{number}") for number in range(150)][50:]
        answer = self.gateway.ask("device", id="192.0.2.99")
        self.assertEqual(answer["total"], 150)
        shown = [row["connection_id"] for row in answer["connections"]]
        self.assertEqual(shown, [endpoint.connection_id.decode() for endpoint in reversed(last)])

    def test_addresses(self) -> None:
        """An address is a text that is one, with a port or without."""
        for text, address in (
            ("192.0.2.1", PeerAddress("192.0.2.1", None)),
            ("192.0.2.1:99", PeerAddress("192.0.2.1", "99")),
            ("::1", PeerAddress("::1", None)),
            ("[::1]", PeerAddress("::1", None)),
            ("[::1]:99", PeerAddress("::1", "99")),
            ("::ffff:192.0.2.1", PeerAddress("192.0.2.1", None)),
            ("2001:DB8::0:1", PeerAddress("2001:db8::1", None)),
            ("[::1]99", None),
            ("192.0.2.1:", None),
            ("192.0.2.1:http", None),
            ("192.0.2", None),
            ("meter", None),
            ("", None),
        ):
            self.assertEqual(read_address(text), address, text)

    def test_no_id(self) -> None:
        """A question without an id is an error."""
        for args in ({}, {"id": ""}, {"id": 7}):
            self.failureResultOf(self.gateway.desk.answer("device", args), BadArgument)


class DetailTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.gateway = Gateway(max_flaps=3)

    def findings(self, endpoint: DeviceProtocol) -> list[str]:
        [row] = self.gateway.ask("device", id=endpoint.connection_id.decode())["connections"]
        return list(row["findings"])

    def test_findings(self) -> None:
        """Findings come from the state of the connection and of what it shares with others."""
        gateway = self.gateway
        endpoint = gateway.device("d1")
        gateway.later(10)
        self.assertEqual(self.findings(endpoint), ["It has sent nothing since it connected 10 s ago."])
        gateway.say(endpoint, b"hello", b"anyone?")
        self.assertIn("It has sent 2 lines and no message was ever sent to it", self.findings(endpoint)[0])
        gateway.send(endpoint, Source(), b"answer", 0)
        gateway.turns()
        self.assertEqual(self.findings(endpoint), [])
        gateway.send(endpoint, Source(), b"late", 3)
        gateway.later(1)
        self.assertIn("Messages to it wait for 1 s for the one with to_device_seq 1", self.findings(endpoint)[0])
        gateway.device("d1")
        self.assertIn("Its device id has 2 open connections", self.findings(endpoint)[1])
        gateway.sink.stop()
        endpoint.stall()
        self.assertIn("It is not read: its lines cannot be published now", self.findings(endpoint)[0])

    def test_same_device(self) -> None:
        """Messages for a device id go to the newest of its connections that is not being closed: the finding names that one."""
        first, second, third = (self.gateway.device("d1") for _ in range(3))
        third.close("for a test")
        newest = f"messages for the device id go to the newest, {second.connection_id.decode()}."
        self.assertIn(f"Its device id has 3 open connections: {newest}", self.findings(first)[0])
        self.assertIn("go to the newest, this one.", self.findings(second)[0])
        self.assertEqual(self.findings(self.gateway.device("d2")), [])

    def test_slow(self) -> None:
        """A device that takes nothing is told from one that takes a little."""
        gateway = self.gateway
        slow, wire = gateway.slow_device()
        wire.untaken = 100
        gateway.send(slow, Source(), b"first")
        gateway.turns()
        gateway.later(5)
        gateway.send(slow, Source(), b"second")
        self.assertIn("It has taken nothing that was written to it for 5 s; 1 message (6 bytes) wait.", self.findings(slow)[0])
        wire.untaken = 99
        self.assertIn("It reads slower than messages arrive: its socket has been full for 5 s", self.findings(slow)[0])

    def test_ends(self) -> None:
        """The last ends of the id are shown, and those of the device of a connection, each once and the newest first."""
        endpoint = self.gateway.device("d1")
        connection_id = endpoint.connection_id.decode()
        self.gateway.past[connection_id] = [{"time": 5, "text": "e"}, {"time": 3, "text": "c"}]
        self.gateway.past["d1"] = [{"time": 6, "text": "f"}, {"time": 5, "text": "e"}]
        self.assertEqual([end["time"] for end in self.gateway.ask("device", id="d1")["ends"]], [6, 5])
        self.assertEqual([end["time"] for end in self.gateway.ask("device", id=connection_id)["ends"]], [6, 5, 3])
        self.gateway.end(endpoint)
        answer = self.gateway.ask("device", id="d1")
        self.assertEqual((answer["connections"], len(answer["ends"])), ([], 2))

    def test_refused(self) -> None:
        """What refuses a device that is not connected is a finding of its own."""
        self.gateway.services.denied.use(parse_deny_list(b"device d1\naddress 192.0.2.0/24\n"))
        self.assertIn("the list of --deny has it", self.gateway.ask("device", id="d1")["findings"][0])
        self.assertIn("Connections from this address", self.gateway.ask("device", id="192.0.2.77")["findings"][0])
        self.assertEqual(self.gateway.ask("device", id="d2")["findings"], [])
        for _ in range(4):
            self.gateway.services.devices.held_off("flapping", "192.0.2.1:1", "default")
        self.assertIn("for another 60 s", self.gateway.ask("device", id="flapping")["findings"][0])


class MergeTests(SynchronousTestCase):
    def test_workers(self) -> None:
        """Connections of one device id at several workers are all shown, the newest first, and are a finding."""
        gateways = [Gateway(), Gateway()]
        for number, gateway in enumerate(gateways):
            gateway.clock.advance(number)
            gateway.device("d1")
            gateway.past["d1"] = [{"time": number, "text": "end"}]
        answers: list[tuple[str, dict[str, Any]]] = [("parent", {"ends": [{"time": 9}]})]
        answers += [(f"worker-{number}", gateway.ask("device", id="d1")) for number, gateway in enumerate(gateways)]
        answer = merge_device(answers, {"id": "d1"})
        self.assertEqual([row["worker"] for row in answer["connections"]], ["worker-1", "worker-0"])
        self.assertEqual(answer["total"], 2)
        ends = [(end["time"], end["worker"]) for end in answer["ends"]]
        self.assertEqual(ends, [(9, None), (1, "worker-1"), (0, "worker-0")])
        self.assertIn("Device id d1 has 2 open connections, at 2 workers", answer["findings"][0])
        alone = merge_device(answers[:2], {"id": "d1"})
        self.assertEqual((alone["total"], alone["findings"]), (1, []))
