"""Why a device failed is found by what its owner can say: its id, or its address. The events of all workers are one list."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.ssl import TLSVersion

from ._support.api import ApiClient
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Gateway, Lab
from ._support.waiting import PATIENCE, current_reactor, pause, reactor_test
from .test_api import control
from .test_certificates import DeviceAuthorities, devices
from .test_deny import serial
from .test_doors import port_of
from .test_stampede import hello
from .test_workers import RESTART, devices_on_each, processes

__all__ = ["devices"]

PAST = ("-startdate", "20250101000000Z", "-enddate", "20250102000000Z")


async def eventually(condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE) -> None:
    """Ask until the answer is true."""
    end = current_reactor().seconds() + seconds
    while not await condition():
        assert current_reactor().seconds() < end, condition
        await pause(0.05)


class Case(NamedTuple):
    """A device that fails."""

    address: str
    ids: tuple[str, ...]
    """What else it is found by."""
    event: str
    said: str
    """Part of the text of the event."""


class Call:
    """A customer's call: the questions of an operator."""

    def __init__(self, gateway: Gateway) -> None:
        self._api = ApiClient(control(gateway))

    async def last_end(self, id: str) -> dict[str, Any]:
        """Return the newest end of what the customer can say. Wait until there is one."""
        ends: list[dict[str, Any]] = []

        async def known() -> bool:
            reply = await self._api.ask(f"/devices/{id}")
            ends[:] = reply.body["ends"] if reply.status == 200 else []
            return bool(ends)

        await eventually(known)
        return ends[0]

    async def check(self, case: Case) -> None:
        """Check that a device is found by its address, and by each of its ids, and listed in `ends`."""
        for id in (case.address, *case.ids):
            end = await self.last_end(id)
            assert (end["event"], case.said in end["text"]) == (case.event, True), (id, end)
        (listed,) = (await self._api.get(f"/ends?query={case.address}"))["ends"]
        assert listed["text"] == end["text"]


@reactor_test
async def test_certificates(lab: Lab, embedded: EmbeddedBrokerProcess, devices: DeviceAuthorities, tmp_path: Path) -> None:
    """A device whose certificate is refused is found by its address, its id, and its serial number, in both versions of TLS."""
    strangers = DeviceAuthorities(tmp_path / "strangers")
    certificates = {name: devices.root.device(name) for name in ("revoked", "denied", "serial", "address")}
    certificates["expired"] = devices.root.device("expired", *PAST)
    certificates["stranger"] = strangers.root.device("stranger")
    devices.root.revoke(devices.root.folder / "revoked.crt")
    devices.publish()
    numbers = {name: f"{serial(certificate):X}" for name, certificate in certificates.items()}
    numbers = {name: number.zfill(len(number) + len(number) % 2) for name, number in numbers.items()}
    denied = tmp_path / "deny"
    denied.write_text(f'device "denied"\nserial {numbers["serial"]}\naddress 127.0.8.40/29\n')
    gateway = await lab.gateway(embedded.url, backend=False, deny=denied, watch="off", **devices.options)
    call = Call(gateway)
    failed = "handshake-failed"
    for version, net in ((TLSVersion.TLSv1_2, 6), (TLSVersion.TLSv1_3, 7)):
        for host, (name, said) in enumerate(
            (
                ("stranger", "its authority is not trusted"),
                ("expired", "it has expired"),
                ("revoked", "it has been revoked"),
                ("denied", "the device is denied: denied"),
                ("serial", "its serial number is denied"),
            ),
            1,
        ):
            case = Case(f"127.0.{net}.{host}", (name, numbers[name], numbers[name].lower()), failed, said)
            device = lab.waiting_device(gateway, certificate=certificates[name], source=case.address, tls=version)
            device.begin(30)
            await device.closed()
            await call.check(case)
            end = await call.last_end(case.address)
            assert (end["fields"]["subject"], end["fields"]["claimed_id"]) == (f"CN={name}", name)
    for last in (41, 42, 41):
        plain = await lab.plain(gateway.owsla.port, source=f"127.0.8.{last}")
        plain.send_raw(hello())
        await plain.closed()
    await call.check(Case("127.0.8.42", (), "address-denied", "in the list of --deny; the last one from 127.0.8.42"))
    assert (await call.last_end("127.0.8.41"))["count"] == 2


@reactor_test
async def test_other_causes(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A device with another protocol, with a wrong password, or that does not read, is found by its address, and by its id if
    it has said one.
    """
    logins = tmp_path / "logins"
    logins.write_text("meter-9:right\nmeter-8:right\n")
    login = f"tcp:0:name=login:interface=127.0.0.1:dialect=login:login-checker=file\\:{logins}:write-buffer=64KiB"
    gateway = await lab.gateway(embedded.url, listen=[login])
    call = Call(gateway)
    port = await port_of(gateway.owsla, "login")
    failed = "handshake-failed"
    for host, (door, first, said) in enumerate(
        (
            (gateway.owsla.port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
            (gateway.owsla.port, b"a line of a device\r\n" * 10, "TLS: "),
            (port, hello(), "a TLS ClientHello, and this port is without TLS"),
            (port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "an HTTP request, and this port is without TLS"),
        ),
        1,
    ):
        plain = await lab.plain(door, source=f"127.0.9.{host}")
        plain.send_raw(first)
        await plain.closed()
        await call.check(Case(f"127.0.9.{host}", (), failed, said))
    wrong = await lab.plain(port, source="127.0.9.8")
    wrong.send_line(b"HELLO meter-9 wrong")
    await wrong.closed()
    assert (await call.last_end("meter-9"))["event"] == "login-failed"
    ends = (await ApiClient(control(gateway)).get("/ends?query=127.0.9.8"))["ends"]
    assert {end["event"] for end in ends} == {"login-failed", "device-disconnected"}
    slow = await lab.plain(port, source="127.0.9.9", delimiter=b"\r\n")
    slow.send_line(b"HELLO meter-8 right")
    assert await slow.line() == b"WELCOME meter-8"
    connection_id = await gateway.introduce(slow)
    slow.pause()
    sent = 0
    while not gateway.owsla.lines("Slow device"):
        sent += 1
        assert sent < 1000, gateway.owsla.output()
        await gateway.send(connection_id, b"x" * 10_000)
    slow.resume()
    await slow.closed()
    end = await call.last_end("meter-8")
    while end["event"] != "device-disconnected":
        end = await call.last_end("meter-8")
    await call.check(Case("127.0.9.9", ("meter-8", connection_id), "device-disconnected", "too slow: "))


@reactor_test
async def test_workers(lab: Lab, embedded: EmbeddedBrokerProcess) -> None:
    """The events and ends of all workers are one list. A reader who gives the cursor of the last answer sees each event once,
    also after a worker was killed.
    """
    gateway = await lab.gateway(embedded.url, workers=2)
    before = await processes(gateway.owsla, 2)
    api = ApiClient(control(gateway))
    first = await api.get("/events?limit=3")
    assert (len(first["events"]), first["lost"]) == (3, 0)
    after = first["next"]
    seen: list[dict[str, Any]] = []

    async def read(kinds: set[str], count: int) -> list[dict[str, Any]]:
        """Read on until there are this many more events of some kinds."""
        nonlocal after
        begin = len(seen)

        def found() -> list[dict[str, Any]]:
            return [event for event in seen[begin:] if event["event"] in kinds]

        async def enough() -> bool:
            nonlocal after
            answer = await api.get(f"/events?after={after}&limit=2")
            assert answer["lost"] == 0
            seen.extend(answer["events"])
            after = answer["next"]
            return len(found()) >= count and not answer["events"]

        await eventually(enough, RESTART)
        return found()

    connected = [pair for pairs in (await devices_on_each(gateway, lab, 2)).values() for pair in pairs]
    events = await read({"device-connected"}, len(connected))
    assert {event["fields"]["connection_id"] for event in events} == {connection_id for _, connection_id in connected}
    assert {event["worker"] for event in events} == {"worker-1", "worker-2"}
    mark = gateway.owsla.mark()
    os.kill(before["worker-2"], signal.SIGKILL)
    restarted = await read({"child-restarted", "node-started"}, 2)
    assert [(event["event"], event["worker"]) for event in restarted] == [
        ("child-restarted", None), ("node-started", "worker-2"),
    ]  # fmt: skip
    await gateway.owsla.wait_for_line(r"\[owsla.worker-2#info\] Listening", RESTART, start=mark)
    for device, _ in connected:
        await device.close()
    ended = await read({"device-disconnected"}, len([one for _, one in connected if one[:8] == first_node(events)]))
    assert {event["worker"] for event in ended} == {"worker-1"}
    once = [(event["worker"], event["node"], event["cursor"]) for event in seen]
    assert len(set(once)) == len(once)
    ends = (await api.get(f"/devices/{ended[0]['fields']['connection_id']}"))["ends"]
    assert [(end["event"], end["worker"]) for end in ends] == [("device-disconnected", "worker-1")]


def first_node(events: list[dict[str, Any]]) -> str:
    """Return the node of worker-1."""
    (node,) = {event["node"] for event in events if event["worker"] == "worker-1"}
    assert re.fullmatch("[0-9a-f]{8}", node)
    return str(node)
