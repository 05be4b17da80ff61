"""What the measurements share: a gateway process, what /proc says of it, its queues, and tables."""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pika
from cryptography.hazmat.backends.openssl import backend as openssl

import twisted

from . import proc

RESULTS = Path(__file__).resolve().parent / "results"
BROKER = "amqp://guest:guest@127.0.0.1:5672"


class Gateway:
    """A real `twistd -n owsla`, on any free port, with queues of its own. A context manager; the queues go with it."""

    def __init__(self, broker: str, *options: str) -> None:
        """`broker` is a URL, or `embedded`: then the broker is part of the process, and of its costs."""
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        folder = Path(self._folder.name)
        name = f"owsla-bench-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self.from_device, self.to_device = f"{name}-from", f"{name}-to"
        self.embedded = broker == "embedded"
        self.log = folder / "log"
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "owsla", "--port", "0"]
        command += ["--interface", "127.0.0.1", "--certs-dir", str(folder / "certs"), "--drain-spread", "0s"]
        command += ["--from-device", self.from_device, "--to-device", self.to_device, "--idle-timeout", "off", *options]
        # Settings of the user's own must not change what is measured. The URL is not for the process list.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OWSLA_")}
        environment["OWSLA_BROKER"] = broker
        if self.embedded:
            port = free_port()
            environment["OWSLA_EMBEDDED_PORT"] = str(port)
            broker = f"amqp://guest:guest@127.0.0.1:{port}"
        self.broker = broker
        """Where a back end connects."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        self.pid = self._process.pid
        try:
            self.port = self._listening()
        except BaseException:
            self._process.kill()
            raise

    def _listening(self) -> int:
        patience = time.monotonic() + 30
        while time.monotonic() < patience:
            found = re.search(r"Listening for devices on port (\d+)", self.log.read_text())
            if found:
                return int(found[1])
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise SystemExit(f"the gateway did not start:\n{self.log.read_text()}")

    def cpu(self) -> float:
        """Seconds of CPU that it has spent so far."""
        return proc.cpu(self.pid)

    def pss(self) -> float:
        """Its memory in KB: proportional set size."""
        return proc.pss(self.pid)

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(45)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if not self.embedded:
            delete_queues(self.broker, self.from_device, self.to_device)
        self._folder.cleanup()


def delete_queues(broker: str, from_device: str, to_device: str) -> None:
    """The queues of a gateway, and what is in them.

    A node's own queue is the node's to delete, as it stops; should it not have come to that, the queue expires.
    """
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        channel = connection.channel()
        for queue in (from_device, to_device, f"{to_device}.undeliverable", f"{to_device}.nodes"):
            channel.queue_delete(queue)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class HasMemory(Protocol):
    """What can be asked for its memory."""

    def pss(self) -> float: ...


def settled(gateway: HasMemory, patience: float = 15.0) -> float:
    """Wait until its memory no longer changes, and say what it is, in KB."""
    end = time.monotonic() + patience
    last = gateway.pss()
    while time.monotonic() < end:
        time.sleep(1.0)
        now = gateway.pss()
        if abs(now - last) < 100:
            return now
        last = now
    return last


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which this share of them is; nan where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def broker_version(broker: str) -> str:
    """What the broker says it is."""
    if broker == "embedded":
        return "embedded broker"
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        properties = connection._impl.server_properties
        return f"{properties.get('product', '?')} {properties.get('version', '?')}"


def circumstances(broker: str | None = None, devices: str = ssl.OPENSSL_VERSION) -> str:
    """What a figure depends on, in a line; `devices` is the OpenSSL of the swarm."""
    parts = [
        time.strftime("%Y-%m-%d"),
        f"{os.cpu_count()} cores",
        f"Python {platform.python_version()}",
        f"Twisted {twisted.__version__}",
        f"gateway {openssl.openssl_version_text().rsplit(' ', 3)[0]}",
        f"devices {devices.rsplit(' ', 3)[0].strip()}",
    ]
    if broker is not None:
        parts.append(broker_version(broker))
    parts.append(f"load average {os.getloadavg()[1]:.1f} at the end")
    return ", ".join(parts)


def arguments(description: str) -> argparse.ArgumentParser:
    """What all measurements take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", metavar="FILE", help="also write the tables to bench/results/FILE")
    return parser


def publish(text: str, output: str | None) -> None:
    """Print the result, and keep it if asked to."""
    print(text)
    if output is not None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / Path(output).name
        path.write_text(text + "\n")
        print(f"written to {path.relative_to(RESULTS.parent.parent)}", file=sys.stderr)


def command_line() -> str:
    """The command that makes the same figures again."""
    module = Path(sys.argv[0]).stem
    words = [re.sub(r"//[^@/]*@", "//…@", word) for word in sys.argv[1:]]
    return " ".join(["python", "-m", f"bench.{module}", *words])
