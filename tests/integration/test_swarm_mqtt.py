"""`owsla swarm --protocol mqtt` against the MQTT plugin of RabbitMQ, over TLS."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Event

import pika
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
        await answering
        await node.close()
