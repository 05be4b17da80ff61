"""An outage of the broker under load: the gateway's memory stays bounded, and afterwards nothing is missing.

    python -m bench.outage --minutes 10 --output outage.md

Between the gateway and the broker is a small TCP proxy. Devices talk as fast as they may, all the time. For the outage the
proxy cuts all connections and refuses new ones (or, with `--silent`, keeps them and forwards nothing: a broker that hangs).
Other devices come, talk, and are gone without a goodbye meanwhile (`--churn` a second), for those must not pile up.

After the broker's return the devices stop, and the books have to balance: each line of each device that stayed connected is on
the queue, counted by (connection_id, from_device_seq).
"""

from __future__ import annotations

import selectors
import socket
import struct
import sys
import threading
import time

import pika

from .backend import BackEnd
from .harness import BROKER, Gateway, arguments, circumstances, command_line, publish, table
from .swarm import Swarm


class Proxy(threading.Thread):
    """Forwards TCP connections to the broker, unless told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(daemon=True)
        self._target = (host, port)
        self._selector = selectors.DefaultSelector()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._listener: socket.socket | None = None
        self._lock = threading.Lock()
        self._open = threading.Event()
        self.silent = False
        """Whether it reads nothing, and lets what comes wait."""
        self._listen(0)
        self.start()

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._open.set()

    def cut(self) -> None:
        """Reset all connections, and refuse new ones."""
        with self._lock:
            self._open.clear()
            if self._listener is not None:
                self._selector.unregister(self._listener)
                self._listener.close()
                self._listener = None
            for sock in list(self._pairs):
                self._close(sock)

    def mend(self) -> None:
        """Forward again."""
        self.silent = False
        with self._lock:
            if self._listener is None:
                self._listen(self.port)

    def run(self) -> None:
        while True:
            self._open.wait()
            if self.silent:
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


def main() -> None:
    parser = arguments("Measure the gateway's memory while the broker is away and devices keep talking.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="of outage (default: %(default)s)")
    parser.add_argument("--before", type=float, default=20, help="seconds of load before it (default: %(default)s)")
    parser.add_argument("--after", type=float, default=20, help="seconds of load after it (default: %(default)s)")
    parser.add_argument("--devices", type=int, default=500, help="that stay connected (default: %(default)s)")
    parser.add_argument("--churn", type=float, default=20, help="others a second that come and go (default: %(default)s)")
    parser.add_argument("--silent", action="store_true", help="the broker hangs, rather than being gone")
    parser.add_argument("--every", type=float, default=5, help="seconds between two looks at memory (default: %(default)s)")
    options = parser.parse_args()

    target = pika.URLParameters(options.broker)
    proxy = Proxy(target.host, target.port)
    login = f"{target.credentials.username}:{target.credentials.password}"
    vhost = "%2f" if target.virtual_host == "/" else target.virtual_host
    samples: list[tuple[float, str, float]] = []
    start = time.monotonic()

    with Gateway(f"amqp://{login}@127.0.0.1:{proxy.port}/{vhost}", "--heartbeat", "10s") as gateway:

        def watch(phase: str, seconds: float) -> None:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                samples.append((time.monotonic() - start, phase, gateway.pss()))
                time.sleep(min(options.every, max(0.0, end - time.monotonic())))

        with (
            BackEnd(options.broker, gateway.from_device, gateway.to_device) as back_end,
            Swarm(gateway.port) as swarm,
            Swarm(gateway.port) as passers_by,
        ):
            watch("connecting", 0.1)
            connected = swarm.call("connect", count=options.devices)["connected"]
            watch("connected, quiet", 3)
            whole = options.before + options.minutes * 60 + options.after
            swarm.ask("flood", seconds=whole + 600, each=10)
            if options.churn:
                passers_by.ask("storm", seconds=whole, rate=options.churn, say=20)
            watch("load", options.before)
            counted = back_end.call("stats")["lines"]
            print(f"{counted} lines in {options.before:g} s; the outage begins", file=sys.stderr)
            if options.silent:
                proxy.silent = True
            else:
                proxy.cut()
            begin = gateway.cpu()
            watch("outage", options.minutes * 60)
            idle = (gateway.cpu() - begin) / (options.minutes * 60)
            print("the outage ends", file=sys.stderr)
            before = back_end.call("stats")
            back = time.monotonic()
            proxy.mend()
            while back_end.call("stats")["lines"] <= before["lines"] + 1000 and time.monotonic() < back + 120:
                watch("the broker is back", 0.2)
            again = time.monotonic() - back
            watch("load again", options.after)
            swarm.ask("stop")
            said = swarm.answer()
            churned = passers_by.answer() if options.churn else {"handshakes": 0, "failed": 0}
            patience = time.monotonic() + 300
            books = back_end.call("stats")
            while books["lines"] < said["lines"] and time.monotonic() < patience:
                watch("rest", 1)
                books = back_end.call("stats")
            watch("quiet", 5)
            books = back_end.call("stats")

    rows = []
    for phase in dict.fromkeys(phase for _, phase, _ in samples):
        there = [(at, kb / 1024) for at, name, kb in samples if name == phase]
        memory = [mb for _, mb in there]
        rows.append(
            (
                phase,
                f"{there[0][0]:.0f} to {there[-1][0]:.0f} s",
                f"{memory[0]:.1f}",
                f"{max(memory):.1f}",
                f"{memory[-1]:.1f}",
            )
        )
    outage = [(at, kb / 1024) for at, phase, kb in samples if phase == "outage"]
    step = max(1, len(outage) // 10)
    balanced = books["lines"] == said["lines"] == books["marks"] and not books["holes"] and not books["wrong"]
    text = "\n\n".join(
        [
            "# An outage of the broker under load",
            f"{circumstances(options.broker)}. {connected} devices that talk as fast as they may, {options.churn:g} others a "
            f"second that come, say 20 lines and are gone; {options.minutes:g} minutes of "
            f"{'a broker that hangs' if options.silent else 'no broker'}.",
            f"    {command_line()}",
            "## The gateway's memory (PSS, MB)",
            table(("phase", "when", "at first", "at most", "at last"), rows),
            "## In the outage",
            table(
                ("second", *(f"{at - outage[0][0]:.0f}" for at, _ in outage[::step])),
                [("MB", *(f"{mb:.1f}" for _, mb in outage[::step]))],
            ),
            f"The gateway's CPU in the outage: {idle:.1%} of a core. The first 1,000 lines arrived {again:.1f} s after the "
            "broker was back.",
            "## The books",
            table(
                ("lines sent", "distinct on the queue", "without a hole", "twice", "wrong", "connections lost", "balance"),
                [
                    (
                        said["lines"],
                        books["lines"],
                        books["marks"],
                        books["duplicates"],
                        books["wrong"],
                        said["lost"],
                        "yes" if balanced else "**NO**",
                    )
                ],
            ),
            f"Of the others {churned['handshakes']} completed a handshake, {churned['failed']} did not; {books['others']} of "
            "their lines arrived.",
        ]
    )
    publish(text, options.output)
    if not balanced:
        sys.exit("the books do not balance")


if __name__ == "__main__":
    main()
