"""Outage of the broker under load: the memory of the gateway stays bounded, and afterwards no line is missing.

    python -m bench.outage --minutes 10 --output outage.md

A small TCP proxy is between the gateway and the broker. Devices send lines as fast as they can, all the time. For the outage
the proxy resets all connections and refuses new ones (or, with `--silent`, keeps them and forwards nothing, like a broker that
hangs). Meanwhile other devices connect, send lines and disconnect without a close (`--churn` per second): they must not
accumulate.

After the outage the devices stop, and the counts are compared: each line of each device that stayed connected must be on the
queue, identified by (connection_id, from_device_seq).
"""

from __future__ import annotations

import argparse
import selectors
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pika

from .backend import BackEnd
from .harness import BROKER, Gateway, arguments, circumstances, command_line, publish, table
from .swarm import Swarm


class Proxy(threading.Thread):
    """TCP proxy to the broker, with outages on request."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(daemon=True)
        self._target = (host, port)
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._silent = False
        """True while the proxy reads nothing."""
        self._listen(0)
        self.start()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._open.set()

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        with self._lock:
            self._open.clear()
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None
            for sock in list(self._pairs):
                self._close(sock)

    def silence(self) -> None:
        """Keep all connections, but forward nothing."""
        self._silent = True

    def mend(self) -> None:
        """End the outage: accept connections and forward again."""
        self._silent = False
        with self._lock:
            if self._listener is None:
                self._listen(self.port)

    def run(self) -> None:
        while True:
            self._open.wait()
            if self._silent:
                time.sleep(0.05)
                continue
            events = self._selector.select(0.05)
            with self._lock:
                for key, _ in events:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._pairs:
                        self._forward(key.fileobj)

    def _accept(self) -> None:
        assert self._listener is not None
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            one.settimeout(10)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
            if data:
                self._pairs[sock].sendall(data)
                return
        except OSError:
            pass
        self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        other = self._pairs.pop(sock, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for one in (sock, other):
            self._selector.unregister(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()


@dataclass
class Measurement:
    """Results of an outage."""

    samples: list[tuple[float, str, float]] = field(default_factory=list)
    """Memory of the gateway: seconds since the start, phase, KB."""
    connected: int = 0
    idle_cpu: float = 0.0
    """Share of a core that the gateway used in the outage."""
    recovery: float = 0.0
    """Time in seconds from the end of the outage to the first 1,000 lines."""
    sent: dict[str, Any] = field(default_factory=dict)
    """Counts of the devices that stayed connected."""
    churned: dict[str, Any] = field(default_factory=dict)
    """Counts of the devices that came and went."""
    received: dict[str, Any] = field(default_factory=dict)
    """Counts of the back end."""

    @property
    def balanced(self) -> bool:
        """True if each line that was sent arrived, in order without a gap, with its own number."""
        received = self.received
        complete = received["lines"] == self.sent["lines"] == received["contiguous"]
        return complete and not received["gaps"] and not received["wrong"]


class Outage:
    """Run of a gateway through an outage."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        target = pika.URLParameters(options.broker)
        self._proxy = Proxy(target.host, target.port)
        login = f"{target.credentials.username}:{target.credentials.password}"
        vhost = "%2f" if target.virtual_host == "/" else target.virtual_host
        self._url = f"amqp://{login}@127.0.0.1:{self._proxy.port}/{vhost}"
        self._start = time.monotonic()
        self.result = Measurement()

    def run(self) -> Measurement:
        """Run all phases and return the results."""
        with (
            Gateway(self._url, "--heartbeat", "10s") as gateway,
            BackEnd(self._options.broker, gateway.from_device, gateway.to_device) as back_end,
            Swarm(gateway.port) as swarm,
            Swarm(gateway.port) as passers_by,
        ):
            self._begin_load(gateway, swarm, passers_by)
            counted = back_end.call("stats")["lines"]
            print(f"{counted} lines in {self._options.before:g} s; the outage begins", file=sys.stderr)
            self._outage(gateway)
            print("the outage ends", file=sys.stderr)
            self._recover(gateway, back_end)
            self._watch(gateway, "load again", self._options.after)
            swarm.ask("stop")
            self.result.sent = swarm.answer()
            self.result.churned = passers_by.answer() if self._options.churn else {"handshakes": 0, "failed": 0}
            self._drain(gateway, back_end)
        return self.result

    def _watch(self, gateway: Gateway, phase: str, seconds: float) -> None:
        """Sample the memory of the gateway for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.result.samples.append((time.monotonic() - self._start, phase, gateway.pss()))
            time.sleep(min(self._options.every, max(0.0, end - time.monotonic())))

    def _begin_load(self, gateway: Gateway, swarm: Swarm, passers_by: Swarm) -> None:
        options = self._options
        self._watch(gateway, "connecting", 0.1)
        self.result.connected = swarm.call("connect", count=options.devices)["connected"]
        self._watch(gateway, "connected, quiet", 3)
        whole = options.before + options.minutes * 60 + options.after
        swarm.ask("flood", seconds=whole + 600, each=10)
        if options.churn:
            passers_by.ask("storm", seconds=whole, rate=options.churn, lines=20)
        self._watch(gateway, "load", options.before)

    def _outage(self, gateway: Gateway) -> None:
        if self._options.silent:
            self._proxy.silence()
        else:
            self._proxy.cut()
        begin = gateway.cpu()
        self._watch(gateway, "outage", self._options.minutes * 60)
        self.result.idle_cpu = (gateway.cpu() - begin) / (self._options.minutes * 60)

    def _recover(self, gateway: Gateway, back_end: BackEnd) -> None:
        before = back_end.call("stats")
        begin = time.monotonic()
        self._proxy.mend()
        while back_end.call("stats")["lines"] <= before["lines"] + 1000 and time.monotonic() < begin + 120:
            self._watch(gateway, "the broker is back", 0.2)
        self.result.recovery = time.monotonic() - begin

    def _drain(self, gateway: Gateway, back_end: BackEnd) -> None:
        patience = time.monotonic() + 300
        while back_end.call("stats")["lines"] < self.result.sent["lines"] and time.monotonic() < patience:
            self._watch(gateway, "rest", 1)
        self._watch(gateway, "quiet", 5)
        self.result.received = back_end.call("stats")


def report(result: Measurement, options: argparse.Namespace) -> str:
    """Format the results as Markdown."""
    rows = []
    for phase in dict.fromkeys(phase for _, phase, _ in result.samples):
        samples = [(at, kb / 1024) for at, name, kb in result.samples if name == phase]
        memory = [mb for _, mb in samples]
        when = f"{samples[0][0]:.0f} to {samples[-1][0]:.0f} s"
        rows.append((phase, when, f"{memory[0]:.1f}", f"{max(memory):.1f}", f"{memory[-1]:.1f}"))
    outage = [(at, kb / 1024) for at, phase, kb in result.samples if phase == "outage"]
    step = max(1, len(outage) // 10)
    received, churned = result.received, result.churned
    counts = (result.sent["lines"], received["lines"], received["contiguous"], received["duplicates"], received["wrong"])
    heads = ("lines sent", "distinct on the queue", "without a gap", "duplicates", "wrong", "connections lost", "balance")
    return "\n\n".join(
        [
            "# An outage of the broker under load",
            f"{circumstances(options.broker)}. {result.connected} devices that send as fast as they can, "
            f"{options.churn:g} others per second that connect, send 20 lines and disconnect; {options.minutes:g} minutes of "
            f"{'a broker that hangs' if options.silent else 'no broker'}.",
            f"    {command_line()}",
            "## Memory of the gateway (PSS, MB)",
            table(("phase", "when", "first", "maximum", "last"), rows),
            "## During the outage",
            table(
                ("second", *(f"{at - outage[0][0]:.0f}" for at, _ in outage[::step])),
                [("MB", *(f"{mb:.1f}" for _, mb in outage[::step]))],
            ),
            f"CPU of the gateway in the outage: {result.idle_cpu:.1%} of a core. The first 1,000 lines arrived "
            f"{result.recovery:.1f} s after the end of the outage.",
            "## Lines",
            table(heads, [(*counts, result.sent["lost"], "yes" if result.balanced else "**NO**")]),
            f"Of the other devices {churned['handshakes']} completed a handshake, {churned['failed']} did not; "
            f"{received['others']} of their lines arrived.",
        ]
    )


def main() -> None:
    parser = arguments("Measure the memory of the gateway while the broker is away and devices keep sending.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="length of the outage (default: %(default)s)")
    parser.add_argument("--before", type=float, default=20, help="seconds of load before the outage (default: %(default)s)")
    parser.add_argument("--after", type=float, default=20, help="seconds of load after the outage (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=500, help="devices that stay connected (default: %(default)s)")
    parser.add_argument(
        "--churn", type=float, default=20, help="other devices per second that connect and leave (default: %(default)s)"
    )
    parser.add_argument("--silent", action="store_true", help="let the broker hang instead of disconnecting it")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples of the memory (default: %(default)s)")
    options = parser.parse_args()
    result = Outage(options).run()
    publish(report(result, options), options.output)
    if not result.balanced:
        sys.exit("lines are missing or wrong")


if __name__ == "__main__":
    main()
