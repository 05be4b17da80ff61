"""Tests of the back ends in docs/batches.md that read batches, in four languages. The programs are used as they are, except
for the broker and the name of the queue.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import pytest

from tests import is_required

from ._support.backend import Backend
from ._support.certificates import Authority
from ._support.lab import Lab
from ._support.page import Page
from ._support.process import ChildProcess
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import pause, reactor_test, until

_GO_SOURCES = Path("/usr/share/gocode")
"""Where Debian installs the sources of Go's libraries."""


class Program(NamedTuple):
    """The program of the page in one language, ready to run."""

    source: str
    file: str
    argv: Sequence[str]
    env: Mapping[str, str]


class Line(NamedTuple):
    """A line as the programs print it, its bytes in hexadecimal."""

    connection_id: str
    seq: int
    received_ms: int
    device_id: str | None
    text: str


# -- languages -------------------------------------------------------------------------------------------------------------


def _missing(language: str, reason: str) -> Any:
    """Skip the test, or fail it if OWSLA_REQUIRE_`language` is set."""
    if is_required(language):
        pytest.fail(f"OWSLA_REQUIRE_{language}=1: {reason}")
    pytest.skip(reason)


def _run(language: str, argv: Sequence[str], reason: str, **options: Any) -> None:
    """Run a command that the programs of a language need."""
    if shutil.which(argv[0]) is None:
        _missing(language, reason)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, **options)
    if done.returncode:
        _missing(language, f"{reason}: {done.stdout[-1000:]}")


def _python(page: Page, folder: Path) -> Program:
    seen = Page("contract.md", folder / "contract").block("python", "class Seen")
    source = seen + "\n\n" + page.block("python", "msgpack.Unpacker")
    return Program(source, "backend.py", [sys.executable, "backend.py"], {})


def _javascript(page: Page, folder: Path) -> Program:
    (folder / "package.json").write_text("{}")
    install = ["npm", "install", "--no-save", "amqplib@^2", "@msgpack/msgpack@^3"]
    _run("NODE", install, "needs Node.js, npm and its registry", cwd=folder)
    return Program(page.block("javascript", "decodeMulti"), "backend.js", ["node", "backend.js"], {})


def _go(page: Page, folder: Path) -> Program:
    # Debian's packages of libraries are for builds without modules, and without the network.
    env = {"GO111MODULE": "off", "GOPATH": str(_GO_SOURCES), "GOCACHE": str(folder / "cache"), "GOTOOLCHAIN": "local"}
    libraries = ["github.com/rabbitmq/amqp091-go", "github.com/vmihailenco/msgpack/v5"]
    reason = "needs golang-go, golang-github-rabbitmq-amqp091-go-dev and golang-github-vmihailenco-msgpack.v5-dev"
    _run("GO", ["go", "build", *libraries], reason, cwd=folder, env=os.environ | env)
    return Program(page.block("go", "msgpack.NewDecoder"), "backend.go", ["go", "run", "backend.go"], env)


def _ruby(page: Page, folder: Path) -> Program:
    _run("RUBY", ["ruby", "-rbunny", "-rmsgpack", "-e", ""], "needs ruby, ruby-bunny and ruby-msgpack")
    return Program(page.block("ruby", "MessagePack::Unpacker"), "backend.rb", ["ruby", "-W", "backend.rb"], {})


_LANGUAGES: Mapping[str, Callable[[Page, Path], Program]] = {
    "python": _python,
    "javascript": _javascript,
    "go": _go,
    "ruby": _ruby,
}


@pytest.fixture(scope="module", params=list(_LANGUAGES))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    """Return the program of a language, and the folder in which it runs."""
    folder = tmp_path_factory.mktemp(request.param)
    return _LANGUAGES[request.param](Page("batches.md", folder / "page"), folder), folder


# -- a back end ------------------------------------------------------------------------------------------------------------


class Reader:
    """The program on a queue of its own."""

    def __init__(self, lab: Lab, broker: RabbitMQ, program: tuple[Program, Path], queue: str = "") -> None:
        self.queue = queue or f"from_{secrets.token_hex(4)}"
        self._lab = lab
        (self._source, self._file, self._argv, self._env), self._folder = program
        for old, new in (("amqp://guest:guest@127.0.0.1:5672/%2f", broker.url), ("from_device", self.queue)):
            for quote in "\"'":
                self._source = self._source.replace(f"{quote}{old}{quote}", f"{quote}{new}{quote}")
        self._output = 0
        self._process: ChildProcess | None = None

    def start(self) -> None:
        """Start the program, again after `stop`."""
        (self._folder / self._file).write_text(self._source)
        self._output += 1
        output = self._folder / f"{self.queue}-{self._output}"
        self._process = process = ChildProcess(self._argv, output=output, cwd=self._folder, env=os.environ | self._env)

        async def end() -> None:
            process.kill()

        self._lab.ends(end)

    def stop(self) -> None:
        """Kill the program."""
        assert self._process is not None
        assert self._process.poll() is None, self._process.output()
        self._process.kill()

    async def ended(self) -> str:
        """Wait for the end of the program, which is a failure, and return its output."""
        assert self._process is not None
        assert await self._process.wait(60) != 0
        return self._process.output()

    async def lines(self, count: int) -> list[Line]:
        """Wait until the program has printed so many lines since its start, and return them."""
        process = self._process
        assert process is not None

        def look() -> bool:
            assert process.poll() is None, process.output()
            return process.output().count("\n") >= count

        await until(look, 60, lambda: f"{count} lines: {process.output()[-2000:]}")
        return [Line(*json.loads(line)) for line in process.output().splitlines()]


def batch(lines: Sequence[Line]) -> bytes:
    """Return the body of a batch."""
    return b"".join(msgpack.packb([*line[:4], bytes.fromhex(line.text)]) for line in lines)


async def publish(backend: Backend, queue: str, *lines: Line) -> None:
    """Publish lines as a batch, as the gateway does."""
    await backend.publish(
        queue,
        batch(lines),
        {"owsla_batch": len(lines)},
        content_type="application/x-msgpack",
        timestamp=lines[0].received_ms // 1000,
    )


async def publish_alone(backend: Backend, queue: str, line: Line) -> None:
    """Publish a line as a message of its own, as the gateway does without batches."""
    headers = {"connection_id": line.connection_id, "from_device_seq": line.seq}
    headers |= {} if line.device_id is None else {"device_id": line.device_id}
    await backend.publish(queue, bytes.fromhex(line.text), headers, timestamp=line.received_ms // 1000)


@reactor_test
async def test_both_forms(rabbitmq: RabbitMQ, lab: Lab, program: tuple[Program, Path]) -> None:
    """The program reads lines in batches and alone, of any bytes and size, with and without a device id. It drops those that
    come again, also in batches that are cut differently, and processes those of a smaller number that come late.
    """
    reader = Reader(lab, rabbitmq, program)
    one, two = (str(uuid.uuid4()) for _ in range(2))
    texts = (b"", b"\xff\x00\xc1", b"hello", "zwölf".encode(), bytes(range(256)) * 64, b"\r" * 70_000)
    lines = [Line(one, seq, 1_763_805_600_000 + seq, "pump 1 ü", text.hex()) for seq, text in enumerate(texts)]
    others = [Line(two, seq, 1_763_805_600_999, None, b"x".hex()) for seq in range(300)]
    mixed = [line for pair in zip(lines, others, strict=False) for line in pair] + others[len(lines) :]
    late = [Line(two, seq, 2**40, None, "") for seq in (301, 300, 70_000, 2**33, 302)]
    alone = [Line(one, 6, 1_763_805_700_000, "pump 1 ü", "ff"), Line(two, 400, 1_763_805_700_000, None, "")]

    reader.start()
    backend = await lab.backend(rabbitmq.url)
    await backend.call(lambda channel: channel.queue_declare(reader.queue, durable=True))
    await publish(backend, reader.queue, *mixed)
    await publish(backend, reader.queue, *mixed[5:25])
    await publish(backend, reader.queue, *lines[2:], *late[:2], *others[-3:])
    for line in (lines[0], *alone, alone[0]):
        await publish_alone(backend, reader.queue, line)
    await publish(backend, reader.queue, *late, *alone)
    expected = [*mixed, *late[:2], *alone, *late[2:]]
    assert await reader.lines(len(expected)) == expected
    reader.stop()
    assert await backend.count(reader.queue) <= 1  # the acknowledgement of the last message may still be on its way


@reactor_test
async def test_acknowledged_as_a_whole(rabbitmq: RabbitMQ, lab: Lab, program: tuple[Program, Path]) -> None:
    """A body that cannot be decoded ends the program and is not acknowledged; the batches before it are. When it starts again,
    all that was not acknowledged is delivered to it again.
    """
    reader = Reader(lab, rabbitmq, program)
    backend = await lab.backend(rabbitmq.url)
    await backend.call(lambda channel: channel.queue_declare(reader.queue, durable=True))
    line = Line(str(uuid.uuid4()), 0, 1_763_805_600_000, None, "61")
    await publish(backend, reader.queue, line)
    await backend.publish(reader.queue, b"\xc1\xc1", {"owsla_batch": 1})
    reader.start()
    assert json.dumps(line) in json.dumps(
        [json.loads(each) for each in (await reader.ended()).splitlines() if each.startswith("[")]
    )
    left: list[bytes] = []
    while not left or left[-1] != b"\xc1\xc1":
        message = await backend.fetch(reader.queue)
        left += [] if message is None else [message.body]
    assert len(left) <= 2


@reactor_test
async def test_undecodable(rabbitmq: RabbitMQ, lab: Lab, tmp_path: Path) -> None:
    """In Python, with the functions of "A batch that cannot be decoded": such messages are in the queue `undecodable`,
    unchanged and in order. The program processes none of their lines, and goes on.
    """
    page, aside = Page("batches.md", tmp_path / "aside"), f"undecodable_{secrets.token_hex(4)}"
    program = _python(page, tmp_path)
    source = program.source
    before, after = source.split("\n\ndef on_message(")[0], source[source.index("\nconnection = ") :]
    source = f"{before}\n\n{page.block('python', 'def checked_lines', {'undecodable': aside})}\n{after}"
    source = source.replace("channel.basic_qos(", "channel.confirm_delivery()\nchannel.basic_qos(")
    reader = Reader(lab, rabbitmq, (program._replace(source=source), tmp_path))
    backend = await lab.backend(rabbitmq.url)
    await backend.call(lambda channel: channel.queue_declare(reader.queue, durable=True))
    lines = [Line(str(uuid.uuid4()), seq, 1_763_805_600_000, None, "61") for seq in range(3)]
    good = batch(lines[:2])
    bad = [b"\xc1", b"", good[:-1], good + b"\xc0", good + good, b"\x01\x02", msgpack.packb([1, 2]) * 2, b"\xff" * 3]
    for body in bad:
        await backend.publish(reader.queue, body, {"owsla_batch": 2})
    await backend.publish(reader.queue, b"not of Owsla", {})
    reader.start()
    await publish(backend, reader.queue, *lines)
    assert await reader.lines(3) == lines
    reader.stop()
    for body in [*bad, b"not of Owsla"]:
        message = await backend.fetch(aside)
        assert message is not None
        assert message.body == body
        assert message.properties.headers == ({} if body == b"not of Owsla" else {"owsla_batch": 2})
    assert await backend.count(reader.queue) <= 1


@reactor_test
async def test_gateway(rabbitmq: RabbitMQ, lab: Lab, program: tuple[Program, Path], tmp_path: Path) -> None:
    """The program reads all lines that a gateway with `--batch` publishes, of devices with an id and without: each once, and
    those of a connection in their order. Empty lines, lines that are not UTF-8, and the longest ones are as they were sent.
    """
    authority = Authority(tmp_path / "authority")
    gateway = await lab.gateway(
        rabbitmq.url, backend=False, client_ca=authority.ca, client_cert="optional", batch=50, batch_delay="20ms"
    )
    backend = await lab.backend(rabbitmq.url)
    devices = {
        "pump 1": await lab.device(gateway, certificate=authority.credentials("pump 1")),
        "zwölf": await lab.device(gateway, certificate=authority.credentials("zwölf")),
        None: await lab.device(gateway),
    }
    sent = [b"", b"\xff\xfe", b"\x00" * 16384, *(b"line %d" % number for number in range(500)), b"\xe4" * 16384, b"", b""]
    began = int(time.time() * 1000)
    for device in devices.values():
        device.send_line(*sent)
    shape = await first_message(backend, gateway.from_device)
    assert (shape.content_type, shape.app_id) == ("application/x-msgpack", "owsla")
    assert 1 <= shape.headers["owsla_batch"] <= 50
    assert "connection_id" not in shape.headers

    reader = Reader(lab, rabbitmq, program, gateway.from_device)
    reader.start()
    lines = await reader.lines(len(sent) * len(devices))
    ended = int(time.time() * 1000)
    assert len(lines) == len(sent) * len(devices)
    assert len({line.connection_id for line in lines}) == len(devices)
    for device_id in devices:
        mine = [line for line in lines if line.device_id == device_id]
        assert [line.seq for line in mine] == list(range(len(sent)))
        assert [bytes.fromhex(line.text) for line in mine] == sent
        assert all(began - 1 <= line.received_ms <= ended for line in mine)
    reader.stop()
    assert await backend.count(gateway.from_device) <= 20  # what was not acknowledged yet is within the prefetch


async def first_message(backend: Backend, queue: str) -> Any:
    """Wait for a message, give it back, and return its properties."""

    def look(channel: Any) -> Any:
        method, properties, _ = channel.basic_get(queue)
        if method is not None:
            channel.basic_nack(method.delivery_tag)
        return properties

    for _ in range(1000):
        found = await backend.call(look)
        if found is not None:
            return found
        await pause(0.01)
    raise AssertionError(f"no message in {queue}")
