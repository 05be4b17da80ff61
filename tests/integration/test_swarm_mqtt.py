"""`owsla swarm --protocol mqtt` against the MQTT plugin of RabbitMQ, over TLS."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pika
import pytest
from twisted.internet.threads import deferToThread

from bench.own_broker import MQTT

from ._support.certificates import Authority
from ._support.commands import Commands
from ._support.process import free_port
from ._support.rabbitmq import RabbitMQ
from ._support.waiting import reactor_test


def _answer_lines(url: str, ready: Event, stop: Event) -> None:
    """Send each line back to its device, by topic."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "amq.topic", "lines.*")
        ready.set()
        for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=0.05):
            if method is not None:
                channel.basic_publish("amq.topic", f"answers.{method.routing_key.removeprefix('lines.')}", body)
            elif stop.is_set():
                return


@reactor_test
async def test_plugin(tmp_path: Path, commands: Commands) -> None:
    """Devices connect, and their lines arrive, are acknowledged and answered; a flood is acknowledged; a storm connects."""
    authority = Authority(tmp_path / "authority")
    cert, key = authority.issue("localhost")
    port = free_port()
    node = RabbitMQ(tmp_path / "node", config=MQTT.format(port=port, cert=cert, key=key), plugins=["rabbitmq_mqtt"])
    ready, stop = Event(), Event()
    answering = None
    try:
        await node.start()
        answering = deferToThread(_answer_lines, node.url, ready, stop)
        await deferToThread(ready.wait, 60)
        arguments = ["swarm", "--protocol=mqtt", f"--port={port}", f"--ca={authority.ca}", "--server-name=localhost", "--json"]
        for mode, more in (("echo", ["--rate=50"]), ("flood", []), ("storm", [])):
            command = commands.start(*arguments, f"--mode={mode}", "--connections=10", "--seconds=2", *more)
            status = await command.ended()
            assert status == 0, command.output() + command.errors()
            found = json.loads(command.output())
            assert found["connections"]["connected"] == 10
            if mode != "storm":
                assert found["lines"]["acknowledged"] == found["lines"]["written"] >= 100
            if mode == "echo":
                assert found["answers"]["answered"] == found["lines"]["written"] == 100
                assert not found["answers"]["strange"]
    finally:
        stop.set()
        if answering is not None:
            await answering
        await node.close()


class Server(Thread):
    """MQTT server over TLS that gives out session tickets. Each device gets a message together with its SUBACK."""

    def __init__(self, authority: Authority) -> None:
        super().__init__(daemon=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*authority.issue("localhost"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.received: dict[int, bytes] = {}
        """All bytes from each device. The packet identifier of its message is its number here."""
        self._handlers: list[Thread] = []

    def run(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self._handlers.append(Thread(target=self._serve, args=(connection, len(self._handlers) + 1), daemon=True))
            self._handlers[-1].start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        received = b""
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as tls:
            tls.settimeout(30)
            received = tls.recv(1000)
            accepted = b"\x20\x02\x00\x00"
            if b"answers/" in received:
                accepted += b"\x90\x03\x00\x01\x01" + b"\x32\x0b\x00\x05hello" + number.to_bytes(2) + b"hi"
            tls.sendall(accepted)
            while data := tls.recv(1000):
                received += data
        self.received[number] = received

    def close(self) -> None:
        """Stop to accept, and wait for the ends of connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(30)
        for handler in self._handlers:
            handler.join(30)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Server, Authority]]:
    authority = Authority(tmp_path / "authority")
    server = Server(authority)
    server.start()
    yield server, authority
    server.close()


@reactor_test
async def test_message_with_the_acceptance(server: tuple[Server, Authority], commands: Commands) -> None:
    """Each device acknowledges the message that comes with its SUBACK, and no device that of another one."""
    mqtt, authority = server
    door = ["swarm", "--protocol=mqtt", f"--port={mqtt.port}", f"--ca={authority.ca}", "--server-name=localhost", "--json"]
    command = commands.start(*door, "--mode=hold", "--connections=5", "--rate=0.001", "--seconds=1")
    assert await command.ended() == 0, command.output() + command.errors()
    mqtt.close()
    assert sorted(mqtt.received) == [1, 2, 3, 4, 5]
    for number, received in mqtt.received.items():
        assert received.partition(b"answers/")[2][2:] == b"\x40\x02" + number.to_bytes(2) + b"\xe0\x00"


@reactor_test
async def test_resumption(server: tuple[Server, Authority], commands: Commands) -> None:
    """In a storm with --resume, devices resume the session of a ticket that came before the CONNACK."""
    mqtt, authority = server
    door = ["swarm", "--protocol=mqtt", f"--port={mqtt.port}", f"--ca={authority.ca}", "--server-name=localhost", "--json"]
    command = commands.start(*door, "--mode=storm", "--resume", "--connections=20", "--connecting=1", "--seconds=20")
    assert await command.ended() == 0, command.output() + command.errors()
    found = json.loads(command.output())["connections"]
    assert (found["connected"], found["resumed"]) == (20, 19)
