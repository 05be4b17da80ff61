"""Common parts of the measurements: a gateway process, its CPU and memory, its queues, and tables."""

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
    """Running `twistd-owsla` on a free port, with its own queues. As a context manager, it ends with its block."""

    def __init__(self, broker: str, *options: str, queues: tuple[str, str] | None = None) -> None:
        """Start the gateway. `broker` is a URL, or `embedded`: then the broker is part of the process and its costs. `queues`
        are the names of its queues, if it shares them with another one.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        folder = Path(self._folder.name)
        name = f"owsla-bench-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self.from_device, self.to_device = queues or (f"{name}-from", f"{name}-to")
        self.embedded = broker == "embedded"
        self.log = folder / "log"
        self.ca = folder / "certs" / "ca.pem"
        """Authority of the development certificate of the gateway."""
        # `twistd` would send session tickets at its first start, without the `dropin.cache` of its plugins.
        command = [str(Path(sys.executable).with_name("twistd-owsla")), "--port", "0"]
        command += ["--interface", "127.0.0.1", "--certs-dir", str(folder / "certs"), "--drain-spread", "0s"]
        command += ["--from-device", self.from_device, "--to-device", self.to_device, "--idle-timeout", "off", *options]
        # Settings from the environment must not change the measurement. The URL has a password, so it is no argument.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OWSLA_")}
        environment["OWSLA_BROKER"] = broker
        if self.embedded:
            port = free_port()
            environment["OWSLA_EMBEDDED_PORT"] = str(port)
            broker = f"amqp://guest:guest@127.0.0.1:{port}"
        self.broker = broker
        """URL for back ends."""
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
        """Return the CPU time in seconds that the gateway has used so far."""
        return proc.cpu(self.pid)

    def pss(self) -> float:
        """Return the memory of the gateway in KB: its proportional set size."""
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
    """Delete the queues of a gateway. The queue of a node is deleted by the node when it stops, or expires."""
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        channel = connection.channel()
        for queue in (from_device, to_device, f"{to_device}.undeliverable", f"{to_device}.nodes"):
            channel.queue_delete(queue)


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class HasMemory(Protocol):
    """Interface of a process with known memory."""

    def pss(self) -> float: ...


def settled(gateway: HasMemory, patience: float = 15.0) -> float:
    """Wait until the memory of a process has not changed for three seconds, but for 100 KB or 0.2 %, and return it in KB.

    A gateway returns free memory to the system a second or two after many handshakes.
    """
    end = time.monotonic() + patience
    last, same = gateway.pss(), 0
    while same < 3 and time.monotonic() < end:
        time.sleep(1.0)
        now = gateway.pss()
        same = same + 1 if abs(now - last) < max(100, last * 0.002) else 0
        last = now
    return last


def percentile(values: Iterable[float], share: float) -> float:
    """Return the value below which this share of the values lies, or nan without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Format a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def broker_version(broker: str) -> str:
    """Return product and version of the broker."""
    if broker == "embedded":
        return "embedded broker"
    with pika.BlockingConnection(pika.URLParameters(broker)) as connection:
        properties = connection._impl.server_properties
        return f"{properties.get('product', '?')} {properties.get('version', '?')}"


def circumstances(broker: str | None = None, devices: str = ssl.OPENSSL_VERSION) -> str:
    """Describe in one line what the figures depend on; `devices` is the OpenSSL version of the swarm."""
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
    """Return an argument parser with the options of all measurements."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", metavar="FILE", help="also write the tables to bench/results/FILE")
    return parser


def publish(text: str, output: str | None) -> None:
    """Print the result, and write it to a file with `--output`."""
    print(text)
    if output is not None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / Path(output).name
        path.write_text(text + "\n")
        print(f"written to {path.relative_to(RESULTS.parent.parent)}", file=sys.stderr)


def command_line() -> str:
    """Return the command that reproduces the result, without passwords."""
    module = Path(sys.argv[0]).stem
    words = [re.sub(r"//[^@/]*@", "//…@", word) for word in sys.argv[1:]]
    return " ".join(["python", "-m", f"bench.{module}", *words])
