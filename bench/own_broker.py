"""A RabbitMQ of its own for a measurement: the one that the tests start.

As a program it runs in the foreground until SIGTERM, with the MQTT plugin over TLS if there is a port for it:

    python -m bench.own_broker --port 5672 [--mqtt-port 8883 --cert FILE --key FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from tests.integration._support.process import accepts
from tests.integration._support.rabbitmq import RabbitMQ

from .c_program import MeasurementError
from .child import ROOT
from .harness import broker_version, free_port

T = TypeVar("T")


class OwnBroker:
    """The broker, from the thread of the measurement."""

    def __init__(self, node: RabbitMQ) -> None:
        self.url = node.url
        self.pid = node.pid
        self._ctl = node.folder / "ctl"
        node.write_ctl(self._ctl)
        self.version = broker_version(self.url)

    def ctl(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and return its output."""
        return subprocess.run([self._ctl, *arguments], check=True, capture_output=True, text=True).stdout


def run_with_broker(measure: Callable[[OwnBroker], T]) -> T:
    """Start a RabbitMQ, call `measure` in a thread, stop the RabbitMQ, and return the result."""
    results: list[T] = []

    async def main(_reactor: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
            node = RabbitMQ(Path(folder))
            try:
                await node.start()
                results.append(await deferToThread(lambda: measure(OwnBroker(node))))
            finally:
                await node.close()

    try:
        react(lambda reactor: main(reactor))
    except SystemExit as end:
        if end.code:
            raise
    return results[0]


MQTT = """\
mqtt.listeners.tcp = none
mqtt.listeners.ssl.1 = 127.0.0.1:{port}
mqtt.allow_anonymous = true
ssl_options.cacertfile = {cert}
ssl_options.certfile = {cert}
ssl_options.keyfile = {key}
ssl_options.verify = verify_none
ssl_options.fail_if_no_peer_cert = false
ssl_options.reuse_sessions = false
ssl_options.honor_cipher_order = true
log.connection.level = error
"""
"""Settings of the MQTT plugin: devices connect over TLS, and need no password, as with Owsla."""


def command(port: str, mqtt: str = "") -> str:
    """Return the shell command of a RabbitMQ on an AMQP port, with further arguments for MQTT."""
    return f"cd {shlex.quote(str(ROOT))} && exec {shlex.quote(sys.executable)} -m bench.own_broker --port {port} {mqtt}"


def url(port: int) -> str:
    """Return the URL of the RabbitMQ on a port of this machine."""
    return f"amqp://guest:guest@127.0.0.1:{port}/%2f"


@contextlib.contextmanager
def running() -> Iterator[str]:
    """Run a RabbitMQ on a free port for the block, which gets its URL."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command(str(port)), shell=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            end = time.monotonic() + 120
            while not accepts(port):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise MeasurementError(f"RabbitMQ did not start: {log.read().decode(errors='replace').strip()[-200:]}")
                time.sleep(0.1)
            yield url(port)
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Run a RabbitMQ until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m bench.own_broker", description="Run a RabbitMQ until SIGTERM.")
    parser.add_argument("--port", type=int, required=True, help="port for AMQP")
    parser.add_argument("--mqtt-port", type=int, help="port for MQTT over TLS")
    parser.add_argument("--cert", type=Path, help="certificate for it, a PEM file")
    parser.add_argument("--key", type=Path, help="its key")
    options = parser.parse_args()
    config, plugins = "", []
    if options.mqtt_port is not None:
        if options.cert is None or options.key is None:
            parser.error("--mqtt-port needs --cert and --key")
        config = MQTT.format(port=options.mqtt_port, cert=options.cert.resolve(), key=options.key.resolve())
        plugins = ["rabbitmq_mqtt"]

    async def serve(reactor: Any) -> None:
        with tempfile.TemporaryDirectory(prefix="owsla-bench-") as folder:
            node = RabbitMQ(Path(folder), config=config, plugins=plugins, port=options.port)
            stopped: Deferred[None] = Deferred()

            async def end() -> None:
                await node.kill()  # its data are not needed
                await node.close()

            # The reactor waits for the node before it stops.
            reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(end()))
            reactor.addSystemEventTrigger("after", "shutdown", stopped.callback, None)
            try:
                await node.start()
            except AssertionError:
                if not node.running:
                    log = "".join(path.read_text(errors="replace") for path in Path(folder).glob("server.*.log"))
                    raise SystemExit(f"RabbitMQ did not start: {log.strip()[-300:]}") from None
                raise
            await stopped

    react(serve)


if __name__ == "__main__":
    main()
