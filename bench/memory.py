"""Memory of an idle connection of a gateway, compared with the minimum that the same TLS connection needs.

    python -m bench.memory --connections 10000 --output memory.md

Two servers hold the same number of connections in one run: `twistd-owsla`, and `bench.bare`, which has nothing but an
`SSL.Connection` with its socket for each. The difference is the memory that Owsla adds. Two more servers compare transports:
`bench.stock` runs the device protocol on that of Owsla and on that of Twisted. With `--peers`, a minimal server in Go and
HAProxy hold as many (`idle_peers`). Kernel memory of sockets is in no figure.

Each of the servers, and the swarm, needs an open file per connection, so the limit of open files bounds the number.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from owsla.runtime.open_files import raise_open_files_limit
from owsla.tls.development import development_certificates

from .child import ROOT
from .harness import BROKER, Gateway, arguments, circumstances, command_line, median, publish, settled, table
from .idle_peers import PROGRAMS, GoServer, HAProxy, IdlePeer
from .swarm import Swarm

BUDGET = 1.2
"""Budget in KB for the memory that Owsla adds to a bare connection."""

SPARE_FILES = 200
"""Number of open files of a process besides the connections that are measured."""


class Bare(Gateway):
    """Server `bench.bare` in the place of a gateway, with a certificate like that of a gateway."""

    module = "bench.bare"
    arguments: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        made = development_certificates(Path(self._folder.name), "localhost")
        command = [sys.executable, "-m", self.module, str(made.cert), str(made.key), *self.arguments]
        self._bare = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._bare.pid
        assert self._bare.stdout is not None
        self.port = int(self._bare.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._bare.communicate()  # the server ends with its input
        self._folder.cleanup()


class OnOwsla(Bare):
    """Server `bench.stock` on the transport of Owsla."""

    module = "bench.stock"
    arguments = ("owsla",)


class OnTwisted(Bare):
    """Server `bench.stock` on the transport of Twisted."""

    module = "bench.stock"
    arguments = ("twisted",)


def hold(server: Gateway | IdlePeer, connections: int, concurrency: int) -> float:
    """Measure the memory in KB that an idle connection adds, with `concurrency` handshakes at a time."""
    with Swarm(server.port) as swarm:
        # A first hundred connections, since allocations that are made once for all are not the cost of one. They stay open: the
        # memory of closed ones would be used again. 500 connections would then seem to take 17 KB each instead of 21.
        swarm.call("connect", count=100)
        empty = settled(server)
        connected = swarm.call("connect", count=connections, concurrency=concurrency)["connected"]
        if connected < connections:
            raise SystemExit(f"only {connected} of {connections} devices could connect")
        return (settled(server) - empty) / connections


def main() -> None:
    parser = arguments("Measure the memory of an idle connection.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker, or embedded (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each server, alternating (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=10000, help="connections to hold (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=50, help="handshakes at a time (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="also measure a server in Go, and HAProxy; both must be installed")
    options = parser.parse_args()
    missing = [program for program in PROGRAMS if shutil.which(program) is None] if options.peers else []
    if missing:
        parser.error(f"--peers: not installed: {', '.join(missing)}")
    limit = raise_open_files_limit()
    most = (limit - SPARE_FILES) // (2 if options.peers else 1)
    if options.connections > most:
        parser.error(f"--connections: a process may have {limit} open files here, so at most {most}")
    with_gateway: list[float] = []
    without: list[float] = []
    on_owsla: list[float] = []
    on_twisted: list[float] = []
    of_peers: dict[str, list[float]] = {}
    for run in range(options.runs):
        print(f"run {run + 1} of {options.runs}", file=sys.stderr)
        with Gateway(options.broker) as gateway:
            with_gateway.append(hold(gateway, options.connections, options.concurrency))
        with Bare() as server:
            without.append(hold(server, options.connections, options.concurrency))
        with OnOwsla() as server:
            on_owsla.append(hold(server, options.connections, options.concurrency))
        with OnTwisted() as server:
            on_twisted.append(hold(server, options.connections, options.concurrency))
        for kind in (GoServer, HAProxy) if options.peers else ():
            with kind() as peer:
                of_peers.setdefault(peer.name, []).append(hold(peer, options.connections, options.concurrency))
    added = median(ours - theirs for ours, theirs in zip(with_gateway, without, strict=True))
    saved = 100 * (1 - median(on_owsla) / median(on_twisted))
    text = "\n\n".join(
        [
            "# Memory of an idle connection",
            f"{circumstances(options.broker)}. Medians of {options.runs} alternating runs; {options.connections} connections, "
            f"{options.concurrency} of them connecting at a time; proportional set size, "
            "without kernel memory of sockets.",
            f"    {command_line()}",
            table(
                ("Owsla, all included", "bare pyOpenSSL server", "Owsla adds", "budget"),
                [(f"{median(with_gateway):.1f} KB", f"{median(without):.1f} KB", f"**{added:.2f} KB**", f"{BUDGET:g} KB")],
            ),
            "The same protocol on two transports, without a broker:",
            table(
                ("transport of Owsla", "transport of Twisted", "Owsla saves"),
                [(f"{median(on_owsla):.1f} KB", f"{median(on_twisted):.1f} KB", f"{saved:.0f} %")],
            ),
        ]
    )
    if of_peers:
        rows = [(name, f"{median(figures):.1f} KB") for name, figures in of_peers.items()]
        text += "\n\nOther servers that hold as many connections:\n\n" + table(("server", "an idle connection"), rows)
    publish(text, options.output)
    if added > BUDGET:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
