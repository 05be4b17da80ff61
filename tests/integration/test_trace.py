"""Traces of devices, from outside: real gateways, TLS devices, and the stream of the API."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ._support.api import ApiClient, ApiStream
from ._support.certificates import Authority
from ._support.embedded import EmbeddedBrokerProcess
from ._support.lab import Lab
from ._support.waiting import reactor_test
from .test_api import ME, control
from .test_workers import processes

Shown = tuple[str, int | None, int | None, str | None]


async def records(stream: ApiStream, count: int) -> list[dict[str, Any]]:
    """Return the next records."""
    return [await stream.find("record") for _ in range(count)]


def shown(record: dict[str, Any]) -> Shown:
    """Return kind, number, size, and the body or the name of the event, or else the text."""
    return record["kind"], record["seq"], record["size"], record.get("body", record.get("event", record.get("text")))


@reactor_test
async def test_device(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A device that does not get in, then connects, talks, goes and comes again is seen in one trace, with numbers, sizes and
    bodies: why it was refused, its lines, the acknowledgements, messages that wait, are dropped or come too late, and its end.
    A trace of its address has the same without bodies. Start and end are events.
    """
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    gateway = await lab.gateway(embedded.url, client_ca=ours.ca, device_ack="ACK {seq}")
    api = ApiClient(control(gateway))
    with api.stream("/trace/d1?bodies=1") as trace, api.stream("/trace/127.0.1.1") as by_address:
        assert (await trace.find("connections"))["connections"] == []
        assert (await by_address.find("connections"))["connections"] == []

        stranger = await lab.device(gateway, certificate=others.credentials("d1"), source="127.0.1.1")
        await stranger.closed()
        (refused,) = await records(trace, 1)
        assert (refused["event"], refused["connection_id"]) == ("handshake-failed", None)
        assert "CN=d1" in refused["text"]

        for line in ("one", "two"):
            device = await lab.device(gateway, certificate=ours.credentials("d1"), source="127.0.1.1")
            device.send_line(line.encode())
            assert await device.line() == b"ACK 0"
            connection_id = (await gateway.message()).connection_id
            found = await records(trace, 3)
            assert [shown(each) for each in found[1:]] == [("in", 0, 3, line), ("ack", 0, 7, None)]
            assert found[0]["event"] == "device-connected"
            assert {each["connection_id"] for each in found} == {connection_id}
            assert {each["device_id"] for each in found} == {"d1"}

            for number, body in ((1, b"second"), (0, b"first"), (0, b"first")):
                headers = {"connection_id": connection_id, "to_device_seq": number}
                await gateway.backend.publish(gateway.to_device, body, headers)
            assert [await device.line() for _ in range(2)] == [b"first", b"second"]
            assert [shown(each) for each in await records(trace, 4)] == [
                ("event", 1, 6, "message 1 waits for the messages before it"),
                ("out", 0, 5, "first"),
                ("out", 1, 6, "second"),
                ("event", 0, 5, "message 0 was sent before, and is dropped"),
            ]
            await device.close()
            (gone,) = await records(trace, 1)
            assert (gone["event"], gone["connection_id"]) == ("device-disconnected", connection_id)
            await gateway.send(connection_id, b"late")
            await gateway.refused()
            (late,) = await records(trace, 1)
            assert (late["event"], late["text"]) == (
                "undeliverable", f"Undeliverable: unknown-connection, {connection_id}"
            )  # fmt: skip
        found = await records(by_address, 19)
        assert [each["kind"] for each in found].count("in") == 2
        assert not any("body" in each for each in found)
        # Which of the two came first is open: they have connections of their own.
        assert {each["target"] for each in (await api.get("/state"))["traces"]} == {"d1", "127.0.1.1"}
    await gateway.owsla.wait_for_line(rf"Trace started: d1, for 300 s, with bodies \(requested by {re.escape(ME)}\)")
    await gateway.owsla.wait_for_line(rf"Trace ended: d1, .*; 19 records \(requested by {re.escape(ME)}\)")


@reactor_test
async def test_login_with_workers(lab: Lab, embedded: EmbeddedBrokerProcess, tmp_path: Path) -> None:
    """A device that logs in is traced on every worker: by its id from the login on, by its address from the beginning. No token
    is shown, and a failed login is. The trace is one event, although each worker records. A connection id ends with the
    connection.
    """
    (tmp_path / "devices").write_text("".join(f"d{number}:s3cret\n" for number in range(3)))
    gateway = await lab.gateway(
        embedded.url, workers=2, dialect="login", login_checker=f"file:{tmp_path / 'devices'}", device_ack="ACK {seq}"
    )
    await processes(gateway.owsla, 2)
    api = ApiClient(control(gateway))
    with api.stream("/trace/d1?bodies=1") as by_id, api.stream("/trace/127.0.1.1?bodies=1") as by_address:
        await by_id.find("connections")
        await by_address.find("connections")
        nodes: set[str] = set()
        for attempt in range(100):
            device = await lab.device(gateway, source="127.0.1.1")
            device.send_line(b"HELLO d1 s3cret", b"a line %d" % attempt)
            assert [await device.line() for _ in range(3)] == [b"WELCOME d1", b"ACK 0", b"ACK 1"]
            connection_id = (await gateway.message()).connection_id
            nodes.add(connection_id[:8])
            await gateway.send(connection_id, b"answer")
            assert await device.line() == b"answer"
            found = await records(by_address, 8)
            assert [each["kind"] for each in found].count("ack") == 2
            assert [shown(each) for each in found if each["kind"] != "ack"] == [
                ("event", None, None, "device-connected"),
                ("in", None, 15, "login line, not shown"),
                ("event", None, None, "device-identified"),
                ("out", None, 10, "WELCOME d1"),
                ("in", 0, len(b"a line %d" % attempt), f"a line {attempt}"),
                ("out", None, 6, "answer"),
            ]
            own = await records(by_id, 6)
            assert own == found[2:]
            await device.close()
            for stream in (by_address, by_id):
                assert (await records(stream, 1))[0]["event"] == "device-disconnected"
            if len(nodes) == 2:
                break
        assert len(nodes) == 2
        stranger = await lab.device(gateway)
        stranger.send_line(b"HELLO d1 wr0ng")
        assert await stranger.line() == b"DENIED"
        (failed,) = await records(by_id, 1)
        assert failed["event"] == "login-failed"
        assert "s3cret" not in str(found) + str(own)

    device = await lab.device(gateway, source="127.0.1.2")
    device.send_line(b"HELLO d2 s3cret", b"x")
    connection_id = (await gateway.message()).connection_id
    with api.stream(f"/trace/{connection_id}") as stream:
        assert (await stream.find("connections"))["connections"] == [connection_id]
        await device.close()
        assert (await records(stream, 1))[0]["event"] == "device-disconnected"
        assert (await stream.find("end"))["text"] == "the connection has ended"
    await gateway.owsla.wait_for_line(rf"Trace ended: {connection_id}, the connection has ended; 1 record ")
    assert len(gateway.owsla.lines("Trace started: d1,")) == 1  # the id of a connection may begin with d1 too
    assert "s3cret" not in gateway.owsla.output()
