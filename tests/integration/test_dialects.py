"""Tests of dialects and of duplicate devices, from outside: a real `twistd`, TLS devices, a back end on either broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ._support.certificates import Authority
from ._support.lab import Broker, Lab
from ._support.waiting import reactor_test

DIALECT = '''
"""A dialect of somebody's, for a test."""

from owsla.dialects import Dialect


class Beating(Dialect):
    """Answers heartbeats, splits lines at semicolons, and breaks where it is told to."""

    __slots__ = ()

    def line(self, line: bytes) -> None:
        if line == b"PING":
            self.conversation.answer(b"PONG")
        elif line == b"BREAK":
            raise RuntimeError("broken")
        else:
            for part in line.split(b";"):
                self.conversation.publish(part)
'''


@reactor_test
async def test_turnstile(broker: Broker, lab: Lab) -> None:
    """The example of the documentation works: a device and a back end that share a turnstile."""
    gateway = await lab.gateway(broker.url, dialect="turnstile")
    device = await lab.device(gateway)
    device.send_line(b"PUSH", b"COIN", b"PUSH")
    assert await device.lines.take(3) == [b"LOCKED", b"UNLOCKED", b"LOCKED"]
    messages = await gateway.messages(3)
    assert [message.body for message in messages] == [b"pushed", b"paid", b"passed"]
    assert [message.seq for message in messages] == [0, 1, 2]
    await gateway.send(messages[0].connection_id, b"UNLOCK")
    assert await device.line() == b"UNLOCKED"
    await gateway.send(messages[0].connection_id, b"hello")
    refused = await gateway.refused()
    assert (refused.body, refused.headers["owsla_reason"]) == (b"hello", "refused-by-dialect")


@reactor_test
async def test_login(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """Back ends know a device that logged in by its id. A failed login is denied and closed. No token is in the log."""
    devices = tmp_path / "devices"
    devices.write_text("d1:s3cret\nd2:other\n")
    gateway = await lab.gateway(broker.url, dialect="login", login_checker=f"file:{devices}", login_timeout="2s")
    device = await lab.device(gateway)
    device.send_line(b"HELLO d1 s3cret", b"a line")
    assert await device.line() == b"WELCOME d1"
    message = await gateway.message()
    assert (message.body, message.seq, message.headers["device_id"]) == (b"a line", 0, "d1")
    await gateway.send(message.connection_id, b"an answer")
    assert await device.line() == b"an answer"
    for hello in (b"HELLO d2 s3cret", b"a line"):
        stranger = await lab.device(gateway)
        stranger.send_line(hello, b"s3cret line")
        assert await stranger.line() == b"DENIED"
        await stranger.closed()
    silent = await lab.device(gateway)
    assert await silent.line() == b"DENIED"
    await silent.closed()
    await gateway.round_trip(device)  # nothing of the other connections was published before
    await gateway.owsla.wait_for_line(r"Login failed: .* from 127\.0\.0\.1:\d+ as device d2: unknown device id")
    assert "s3cret" not in gateway.owsla.output()
    assert await gateway.owsla.terminate() == 0


@reactor_test
async def test_devices_file_in_trouble(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """While the devices file is missing or invalid, known devices can still log in, and one line is logged. A valid file is
    used again.
    """
    devices = tmp_path / "devices"
    devices.write_text("d1:s3cret\n")
    gateway = await lab.gateway(broker.url, dialect="login", login_checker=f"file:{devices}", backend=False)

    async def answer(hello: bytes) -> bytes:
        device = await lab.device(gateway)
        device.send_line(hello)
        return await device.line()

    devices.unlink()
    for _ in range(3):
        assert await answer(b"HELLO d1 s3cret") == b"WELCOME d1"
        assert await answer(b"HELLO d2 s3cret") == b"DENIED"
    devices.write_text("# new\nd1:s3:cret\n")
    assert await answer(b"HELLO d1 s3cret") == b"WELCOME d1"
    devices.write_text("# new\nd2:s3cret\n")
    assert await answer(b"HELLO d1 s3cret") == b"DENIED"
    assert await answer(b"HELLO d2 s3cret") == b"WELCOME d2"
    await gateway.owsla.wait_for_line("devices is in use again")
    assert gateway.owsla.output().count("no such file or directory") == 1
    assert "Traceback" not in gateway.owsla.output()
    assert "s3cret" not in gateway.owsla.output()


@reactor_test
async def test_of_ones_own(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A dialect is loaded by its module and name. Acknowledgements count received lines. An exception closes its own
    connection.
    """
    (tmp_path / "beating.py").write_text(DIALECT)
    options: dict[str, Any] = {"env": {"PYTHONPATH": str(tmp_path)}}
    gateway = await lab.gateway(broker.url, dialect="beating:Beating", device_ack="ACK {seq}", **options)
    device, other = await lab.device(gateway), await lab.device(gateway)
    device.send_line(b"PING", b"a;b;c", b"PING", b"d")
    bodies = [message.body for message in await gateway.messages(4)]
    assert bodies == [b"a", b"b", b"c", b"d"]
    heard: list[bytes] = []
    while not heard or heard[-1] != b"ACK 3":
        heard.append(await device.line())
    assert heard.count(b"PONG") == 2
    acknowledged = [int(line[4:]) for line in heard if line != b"PONG"]
    assert acknowledged == sorted(set(acknowledged))
    device.send_line(b"BREAK", b"not heard")
    await device.closed()
    await gateway.owsla.wait_for_line(r"Dialect Beating failed: [-0-9a-f]{36} is closed: RuntimeError: broken")
    await gateway.owsla.wait_for_line(r"Device disconnected: .*its dialect failed")
    other.send_line(b"PING")
    assert await other.line() == b"PONG"
    await gateway.introduce(other)
    gateway.owsla.tracebacks = 1  # the author of the dialect needs the location
    assert gateway.owsla.output().count("Traceback") == 1


@reactor_test
async def test_replaced(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """With --on-duplicate replace, a second connection with the same device certificate closes the first. Others stay."""
    authority = Authority(tmp_path / "devices")
    pairs = []
    for name in ("d1", "d2"):
        cert, key = authority.issue(name)
        pair = tmp_path / f"{name}.pair"
        pair.write_bytes(cert.read_bytes() + key.read_bytes())
        pairs.append(pair)
    one, two = pairs
    gateway = await lab.gateway(broker.url, client_ca=authority.ca, on_duplicate="replace")
    first = await lab.device(gateway, certificate=one)
    other = await lab.device(gateway, certificate=two)
    await gateway.introduce(first)
    second = await lab.device(gateway, certificate=one)
    await first.closed()
    await gateway.owsla.wait_for_line(r"Device disconnected: .*device d1\) from 127.*, replaced")
    await gateway.round_trip(second)
    await gateway.round_trip(other)


@reactor_test
async def test_contested(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """Two devices with one identity replace each other a few times, then only every few seconds. A warning names the device."""
    cert, key = Authority(tmp_path / "devices").issue("d1")
    pair = tmp_path / "d1.pair"
    pair.write_bytes(cert.read_bytes() + key.read_bytes())
    gateway = await lab.gateway(broker.url, client_ca=tmp_path / "devices" / "ca.pem", on_duplicate="replace")
    earlier = await lab.device(gateway, certificate=pair)
    for _ in range(5):
        later = await lab.device(gateway, certificate=pair)
        await earlier.closed()
        earlier = later
    later = await lab.device(gateway, certificate=pair)
    line = r"Device contested: d1 was replaced 6 times in a row, last by 127\.0\.0\.1:\d+ and 127\.0\.0\.1:\d+;"
    await gateway.owsla.wait_for_line(line)
    for device in (earlier, later):
        await gateway.round_trip(device)
    await earlier.closed()
    await gateway.round_trip(later)


@reactor_test
async def test_replaced_by_login(broker: Broker, lab: Lab, tmp_path: Path) -> None:
    """A device identified by a dialect replaces its previous connection only once its login has succeeded."""
    devices = tmp_path / "devices"
    devices.write_text("d1:t\n")
    gateway = await lab.gateway(broker.url, dialect="login", login_checker=f"file:{devices}", on_duplicate="replace")
    first = await lab.device(gateway)
    first.send_line(b"HELLO d1 t")
    assert await first.line() == b"WELCOME d1"
    second = await lab.device(gateway)
    await gateway.round_trip(first)
    second.send_line(b"HELLO d1 t")
    assert await second.line() == b"WELCOME d1"
    await first.closed()
    await gateway.round_trip(second)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dialect": "turnstil"}, "owsla: --dialect: 'turnstil': there is no such dialect; did you mean turnstile?\n"),
        ({"dialect": "nowhere:Name"}, "owsla: --dialect: 'nowhere:Name': there is no module nowhere\n"),
        (
            {"dialect": "owsla.routing:Registry"},
            "owsla: --dialect: 'owsla.routing:Registry' is not a dialect: a subclass of owsla.dialects.Dialect\n",
        ),
        (
            {"dialect": "login"},
            "owsla: --dialect: the login dialect needs --login-checker, such as file:/etc/owsla/devices\n",
        ),
        (
            {"dialect": "login", "login_checker": "file:/nonexistent/x"},
            "owsla: --login-checker: file: /nonexistent/x: no such file or directory\n",
        ),
        (
            {"dialect": "login", "login_checker": "file:/bin/ls"},
            "owsla: --login-checker: file: /bin/ls: this is not a text file\n",
        ),
        (
            {"port": "27411", "http": "27411"},
            "owsla: --http: --port and --http cannot both use port 27411\n",
        ),
        (
            {"por": "27411"},
            "owsla: --por: no such option; did you mean --port?\n",
        ),
    ],
)
@reactor_test
async def test_refused_at_start(lab: Lab, options: dict[str, str], line: str) -> None:
    """An invalid setting is reported in one line on standard error, with exit status 1."""
    owsla = lab.new_owsla(embedded_port=0, **options)
    owsla.launch()
    assert await owsla.exited(30) == 1
    assert owsla.errors() == line
