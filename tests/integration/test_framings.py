"""Tests of devices that speak in frames instead of lines: real processes, over TLS, with each framing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from twisted.internet.threads import deferToThread

from ._support.device import Device
from ._support.lab import Gateway, Lab
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import reactor_test, until, within

EVERY = bytes(range(256))[:250]

FRAMES: dict[str, tuple[list[bytes], bytes]] = {
    "length:1": ([b"hello", b"", EVERY], b"\x05hello\x00\xfa" + EVERY),
    "length:2": ([b"hello", b"", EVERY], b"\x00\x05hello\x00\x00\x00\xfa" + EVERY),
    "length:4": ([b"hello", b"", EVERY], b"\0\0\0\x05hello\0\0\0\0\0\0\0\xfa" + EVERY),
    "length:8": ([b"hello", b""], b"\0\0\0\0\0\0\0\x05hello\0\0\0\0\0\0\0\0"),
    "length:2:little:inclusive": ([b"hello", b"", EVERY], b"\x07\x00hello\x02\x00\xfc\x00" + EVERY),
    "netstring": ([b"hello", b"", EVERY], b"5:hello,0:,250:" + EVERY + b","),
    "octet-counting": ([b"<34>1 - a", b"", EVERY], b"9 <34>1 - a0 250 " + EVERY),
    "fixed:5": ([b"hello", b"\r\n\0\xff ", b"world"], b"hello\r\n\0\xff world"),
    "between:02:03": ([b"hello", b"", b"\r\n\0"], b"\x02hello\x03\x02\x03\x02\r\n\0\x03"),
    "between:0b:1c0d": ([b"MSH|^~\\&|", b"\x1c"], b"\x0bMSH|^~\\&|\x1c\r\x0b\x1c\x1c\r"),
    "between:7e:7e": ([b"\x02\0\0", b"", b"x"], b"~\x02\0\0~~~~x~"),
}
"""For each framing: payloads, and the bytes of their frames."""


async def framed_device(lab: Lab, gateway: Gateway) -> Device:
    """Connect a device whose received bytes are not split."""
    return await lab.device(gateway, delimiter=b"\xde\xad\xbe\xef" * 4)


async def received(device: Device, data: bytes) -> None:
    """Wait until a device has received these bytes, and no others."""
    await until(lambda: len(device.protocol.rest) >= len(data), what=lambda: f"{data!r}, not {device.protocol.rest!r}")
    assert device.protocol.rest == data


@pytest.mark.parametrize("framing", FRAMES)
@reactor_test
async def test_both_ways(rabbitmq: RabbitMQ, lab: Lab, framing: str) -> None:
    """The payload is the body of a message exactly, in both directions, also when its frame arrives byte by byte."""
    payloads, frames = FRAMES[framing]
    gateway = await lab.gateway(rabbitmq.url, framing=framing)
    device = await framed_device(lab, gateway)
    device.send_raw(frames)
    messages = await gateway.messages(len(payloads))
    assert [message.body for message in messages] == payloads
    assert [message.headers["from_device_seq"] for message in messages] == list(range(len(payloads)))
    for place in range(len(frames)):
        device.send_raw(frames[place : place + 1])
    assert [message.body for message in await gateway.messages(len(payloads))] == payloads
    for number, payload in enumerate(payloads):
        headers = {"connection_id": messages[0].connection_id, "to_device_seq": number}
        await gateway.backend.publish(gateway.to_device, payload, headers)
    await received(device, frames)


@reactor_test
async def test_acknowledgements(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """The acknowledgement of --device-ack is a frame, too. A skipped frame has no number."""
    gateway = await lab.gateway(rabbitmq.url, framing="netstring", device_ack="ACK {seq}", max_line=10, on_long="skip")
    device = await framed_device(lab, gateway)
    device.send_raw(b"5:hello,")
    await received(device, b"5:ACK 0,")
    device.send_raw(b"11:hello world,5:again,")
    await received(device, b"5:ACK 0,5:ACK 1,")
    assert [message.body for message in await gateway.messages(2)] == [b"hello", b"again"]


@pytest.mark.parametrize(
    ("framing", "bad", "why"),
    [
        ("length:4", b"\x80\0\0\0", "Line too long"),
        ("length:8", b"\x80\0\0\0\0\0\0\0", "Line too long"),
        ("netstring", b"2147483648:", "Line too long"),
        ("octet-counting", b"<34>1 no length", "Bad frame"),
        ("netstring", b"5:hello;", "Bad frame"),
        ("between:02:03", b"\x02one\x02two\x03", "Bad frame"),
    ],
)
@reactor_test
async def test_bad_frames(rabbitmq: RabbitMQ, lab: Lab, framing: str, bad: bytes, why: str) -> None:
    """A frame that is malformed, or claims to be too long, closes its connection, with an event. The frames before it are
    published, and nothing of it or after it. Other connections go on.
    """
    payloads, frames = FRAMES[framing]
    gateway = await lab.gateway(rabbitmq.url, framing=framing)
    other = await framed_device(lab, gateway)
    device = await framed_device(lab, gateway)
    device.send_raw(frames + bad + frames)
    await device.closed()
    assert [message.body for message in await gateway.messages(len(payloads))] == payloads
    await gateway.owsla.wait_for_line(why)
    other.send_raw(frames)
    assert [message.body for message in await gateway.messages(len(payloads))] == payloads


@reactor_test
async def test_skipped_lines(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """With --on-long skip, a connection goes on after a line that is too long, which is counted, and told by an event."""
    gateway = await lab.gateway(rabbitmq.url, on_long="skip", max_line=100)
    device = await lab.device(gateway)
    device.send_raw(b"one\n" + b"x" * 200_000 + b"\ntwo\n" + b"x" * 101 + b"\nthree\n")
    messages = await gateway.messages(3)
    assert [(message.body, message.headers["from_device_seq"]) for message in messages] == [
        (b"one", 0), (b"two", 1), (b"three", 2),
    ]  # fmt: skip
    line = await gateway.owsla.wait_for_line("Lines skipped")
    assert messages[0].connection_id in line.string
    assert "1 line of more than 100 bytes" in line.string
    await device.close()
    await gateway.owsla.wait_for_line("Lines skipped", start=line.end())


@reactor_test
async def test_undeliverable(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """A body that cannot be framed is recorded, and its number used up."""
    gateway = await lab.gateway(rabbitmq.url, framing="fixed:5")
    device = await framed_device(lab, gateway)
    device.send_raw(b"hello")
    connection_id = (await gateway.message()).connection_id
    for number, body in enumerate((b"first", b"longer", b"", b"\n\n\n\n\n")):
        await gateway.backend.publish(gateway.to_device, body, {"connection_id": connection_id, "to_device_seq": number})
    refused = [await gateway.refused(), await gateway.refused()]
    assert [(message.body, message.headers["owsla_reason"]) for message in refused] == [
        (b"longer", "bad-length"), (b"", "bad-length"),
    ]  # fmt: skip
    await received(device, b"first\n\n\n\n\n")
    await gateway.backend.publish(gateway.to_device, b"", {"connection_id": connection_id, "owsla_close": True})
    await device.closed()


@reactor_test
async def test_two_doors(rabbitmq: RabbitMQ, lab: Lab) -> None:
    """Doors of one process have a framing each. Messages of one queue are framed for the device that they are for, and a body
    that one of them cannot be sent can be sent to the other.
    """
    listen = [r"tls:0:name=meters:interface=127.0.0.1:framing=length\:2:max-line=50"]
    gateway = await lab.gateway(rabbitmq.url, listen=listen, max_line=100)
    port = int((await gateway.owsla.wait_for_line(r"Listening for devices on port (\d+) .*\(door meters\)"))[1])
    device = await lab.device(gateway)
    meter = await lab.device(gateway, port=port, delimiter=b"\xde\xad\xbe\xef" * 4)
    device.send_raw(b"a line\n")
    line = await gateway.message()
    meter.send_raw(b"\0\x06a\nword")
    word = await gateway.message()
    assert (line.body, word.body) == (b"a line", b"a\nword")
    for message, body in ((line, b"x" * 60), (word, b"\r\n"), (line, b"\r\n"), (word, b"x" * 60)):
        await gateway.send(message.connection_id, body)
    assert await device.line() == b"x" * 60
    await received(meter, b"\0\x02\r\n")
    refused = [await gateway.refused(), await gateway.refused()]
    assert {(message.connection_id, message.headers["owsla_reason"]) for message in refused} == {
        (line.connection_id, "delimiter-in-body"),
        (word.connection_id, "too-long"),
    }
    meter.send_raw(b"\0\x33")
    await meter.closed()
    await gateway.owsla.wait_for_line(r"Line too long: .*\(door meters\)")
    await gateway.round_trip(device)


ERLANG = """
{{ok, _}} = application:ensure_all_started(ssl),
{{ok, Socket}} = ssl:connect("127.0.0.1", {port}, [binary, {{packet, {size}}}, {{active, false}}, {{verify, verify_none}}]),
Bodies = [<<"hello">>, <<>>, list_to_binary(lists:seq(0, 249))],
[ok = ssl:send(Socket, Body) || Body <- Bodies],
Answers = [element(2, {{ok, _}} = ssl:recv(Socket, 0, 60000)) || _ <- Bodies],
true = (Answers =:= lists:reverse(Bodies)),
io:format("the same~n"),
halt(0).
"""
"""An Erlang device: its frames are those of the option `{packet, N}` of its sockets."""


@pytest.mark.parametrize("size", [1, 2, 4])
@reactor_test
async def test_erlang(rabbitmq: RabbitMQ, lab: Lab, tmp_path: Path, size: int) -> None:
    """An Erlang device with the socket option `{packet, N}` speaks the framing `length:N`."""
    erl = shutil.which("erl")
    if erl is None:
        pytest.skip("no Erlang is installed")
    gateway = await lab.gateway(rabbitmq.url, framing=f"length:{size}")
    program = ERLANG.format(port=gateway.owsla.port, size=size)
    command = [erl, "-noshell", "-noinput", "-eval", program]
    running = deferToThread(subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    messages = await gateway.messages(3)
    assert [message.body for message in messages] == [b"hello", b"", EVERY]
    for number, message in enumerate(reversed(messages)):
        headers = {"connection_id": message.connection_id, "to_device_seq": number}
        await gateway.backend.publish(gateway.to_device, message.body, headers)
    ended = await within(running)
    assert (ended.returncode, ended.stdout) == (0, "the same\n"), ended
