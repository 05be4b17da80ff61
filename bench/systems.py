"""Systems under measurement: a gateway as a foreground command, and `owsla swarm` in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pika

from . import own_broker, proc
from .c_program import MeasurementError
from .harness import delete_queues, free_port


@dataclass(frozen=True)
class System:
    """Gateway that can be started with a command."""

    name: str
    command: str
    """Shell command with the placeholders {port}, {cert} and {key}."""
    from_device: str = "from_device"
    to_device: str = "to_device"
    ours: bool = False
    processes: int = 1
    protocol: str = "lines"
    """Protocol of its devices. With `mqtt` the system is a RabbitMQ of its own, on the port {amqp}."""

    @property
    def queues(self) -> tuple[str, str]:
        return self.from_device, self.to_device


QUEUES = "owsla-bench-from", "owsla-bench-to"


def owsla(processes: int, batch: int = 1, *options: str) -> System:
    """Return Owsla with its defaults and further options, except for a quick shutdown and its own queues.

    `batch`: lines in a message at most.
    """
    queues = QUEUES
    # `twistd` would send session tickets at its first start, without the `dropin.cache` of its plugins (owsla.runtime.openssl).
    program = shlex.quote(str(Path(sys.executable).with_name("twistd-owsla")))
    command = f"exec {program} --port {{port}} --interface 127.0.0.1 --cert {{cert}} --key {{key}} "
    command += f"--from-device {queues[0]} --to-device {queues[1]} --workers {processes} --drain-spread 0s --idle-timeout off"
    name = "Owsla" if processes == 1 else f"Owsla, --workers {processes}"
    if batch > 1:
        command += f" --batch {batch}"
        name += f", --batch {batch}"
    if options:
        command += " " + shlex.join(options)
    return System(name, command, *queues, ours=True, processes=processes)


def mqtt() -> System:
    """Return the MQTT plugin of a RabbitMQ of its own. A queue is bound to the topics of the lines."""
    command = own_broker.command("{amqp}", "--mqtt-port {port} --cert {cert} --key {key}")
    return System("RabbitMQ MQTT", command, *QUEUES, protocol="mqtt")


class RunningSystem:
    """Running gateway. As a context manager, it ends with the block, with its child processes and queues."""

    def __init__(self, system: System, broker: str, cert: Path, key: Path) -> None:
        """Start a system in front of the RabbitMQ at the URL `broker`, unless it has one of its own."""
        self.system = system
        self.port = free_port()
        amqp = free_port()
        self.is_broker = system.protocol == "mqtt"
        """Whether it is a RabbitMQ itself."""
        self.broker = own_broker.url(amqp) if self.is_broker else broker
        """URL of its RabbitMQ."""
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        self._log = Path(self._folder.name) / "log"
        if not self.is_broker:
            delete_queues(broker, *system.queues)
        command = system.command
        words = {"port": str(self.port), "amqp": str(amqp), "cert": shlex.quote(str(cert)), "key": shlex.quote(str(key))}
        for word, value in words.items():
            command = command.replace(f"{{{word}}}", value)
        # Settings from the environment must not change the measurement. The URL has a password, so it is no argument.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OWSLA_")}
        environment["OWSLA_BROKER" if system.ours else "AMQP_URL"] = broker
        with self._log.open("wb") as log:
            # A session of its own, so that it can be ended with all its children, and Ctrl-C reaches this process only.
            self._process = subprocess.Popen(
                command,
                shell=True,
                env=environment,
                cwd=self._folder.name if system.ours else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._wait(60)
            if self.is_broker:
                self._bind()
        except BaseException:
            self._end()
            raise

    def _wait(self, patience: float) -> None:
        """Wait until a TLS handshake succeeds."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock, context.wrap_socket(sock):
                    return
            except OSError:
                pass  # not yet
            if not self.alive:
                break
            time.sleep(0.1)
        raise MeasurementError(f"it did not start: {self.last_log_line()}")

    def _bind(self) -> None:
        """Bind the queue of lines to the topics of the devices."""
        with pika.BlockingConnection(pika.URLParameters(self.broker)) as connection:
            channel = connection.channel()
            channel.queue_declare(self.system.from_device, durable=True)
            channel.queue_bind(self.system.from_device, "amq.topic", "lines.*")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def last_log_line(self) -> str:
        """Return the last line of its log."""
        lines = self._log.read_text(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "its log is empty")

    def cpu(self) -> float:
        return proc.cpu(self.pid)

    def pss(self) -> float:
        return proc.pss(self.pid)

    def _end(self) -> None:
        end_group(self._process, 20)
        self._folder.cleanup()
        if not self.is_broker:
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                delete_queues(self.broker, *self.system.queues)

    def __enter__(self) -> RunningSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


def end_group(process: subprocess.Popen[Any], patience: float) -> None:
    """End a session leader with all processes of its session: with SIGTERM, and after `patience` seconds with SIGKILL."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        pass
    # Its children may have outlived it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


DEVICES = """\
openssl_conf = all
[all]
ssl_conf = tls
[tls]
system_default = devices
[devices]
Groups = {groups}
"""
"""OpenSSL configuration with the key exchange groups of the devices."""


class SwarmCommand:
    """Running `owsla swarm` in front of a gateway; a context manager."""

    def __init__(self, port: int, ca: Path | None, openssl: Path, *options: str, waits: bool = False) -> None:
        """Start the swarm with the OpenSSL configuration in the file `openssl`; without TLS if `ca` is `None`."""
        command = [str(Path(sys.executable).with_name("owsla")), "swarm", "--port", str(port), "--json", *options]
        command += ["--plain"] if ca is None else ["--ca", str(ca), "--server-name", "localhost"]
        if waits:
            command.append("--wait")
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - ended in __exit__
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "OPENSSL_CONF": str(openssl)},
            stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def ready(self, patience: float = 120) -> int:
        """Wait until the devices are connected, and return their number."""
        assert self._process.stderr is not None
        if not select.select([self._process.stderr], (), (), patience)[0]:
            raise MeasurementError(f"the swarm was not connected within {patience:g} seconds")
        line = self._process.stderr.readline().decode()
        if "connected; Enter" not in line:
            raise MeasurementError(line.strip() or "the swarm ended early")
        return int(line.split()[0])

    def begin(self) -> None:
        """Let the devices send lines."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def interrupt(self) -> dict[str, Any]:
        """End the swarm early and return its summary."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        return self.summary(60)

    def summary(self, patience: float) -> dict[str, Any]:
        """Wait for the end of the swarm and return its summary."""
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            raise MeasurementError(f"the swarm did not end within {patience:g} seconds") from None
        self._output.seek(0)
        text = self._output.read()
        if not text:
            assert self._process.stderr is not None
            raise MeasurementError(self._process.stderr.read().decode().strip() or "the swarm ended early")
        summary: dict[str, Any] = json.loads(text)
        return summary

    def cpu(self) -> float:
        return proc.cpu(self.pid)

    def __enter__(self) -> SwarmCommand:
        return self

    def __exit__(self, *_: object) -> None:
        end_group(self._process, 0 if self._process.poll() is not None else 2)
        for pipe in (self._process.stdin, self._process.stderr, self._output):
            if pipe is not None:
                pipe.close()
