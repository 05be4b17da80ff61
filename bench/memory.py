"""What an idle connection takes of a gateway's memory, beside the least that it takes with the same TLS.

    python -m bench.memory --connections 10000 --output memory.md

Both servers hold as many connections in one run: a real `twistd -n owsla`, and `bench.bare`, which has nothing but OpenSSL's
connection and a socket for each. The difference is what Owsla adds. What the system keeps for a socket is in neither figure.

A process has a limit of open files, and each of the two, and the swarm, has one for each connection.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from owsla.runtime.open_files import raise_open_files_limit
from owsla.tls.certificates import development_certificates

from .child import ROOT
from .harness import BROKER, Gateway, arguments, circumstances, command_line, median, publish, settled, table
from .swarm import Swarm

BUDGET = 2.0
"""KB that a connection may take above the bare one."""

SPARE_FILES = 100
"""Open files that a process has beside its connections."""


class Bare(Gateway):
    """`bench.bare` in the place of a gateway: measured in the same way, with a certificate as a gateway makes for itself."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="owsla-bench-")
        made = development_certificates(Path(self._folder.name), "localhost")
        command = [sys.executable, "-m", "bench.bare", str(made.cert), str(made.key)]
        self._bare = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._bare.pid
        assert self._bare.stdout is not None
        self.port = int(self._bare.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self._bare.communicate()  # it ends with its input
        self._folder.cleanup()


def hold(server: Gateway, connections: int, concurrency: int) -> float:
    """KB that each of so many idle connections adds, so many of them connecting at a time."""
    with Swarm(server.port) as swarm:
        # What is made once for all connections is no part of a connection's cost.
        swarm.call("connect", count=100)
        swarm.call("disconnect")
        empty = settled(server)
        connected = swarm.call("connect", count=connections, concurrency=concurrency)["connected"]
        if connected < connections:
            raise SystemExit(f"only {connected} of {connections} devices could connect")
        return (settled(server) - empty) / connections


def main() -> None:
    parser = arguments("Measure what an idle connection takes of memory.")
    parser.add_argument("--broker", default=BROKER, help="AMQP URL of a broker, or embedded (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each server, alternating (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=10000, help="held at once (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=50, help="handshakes at a time (default: %(default)s)")
    options = parser.parse_args()
    limit = raise_open_files_limit()
    if options.connections + SPARE_FILES > limit:
        parser.error(f"--connections: a process may have {limit} open files here, so at most {limit - SPARE_FILES}")
    with_gateway: list[float] = []
    without: list[float] = []
    for run in range(options.runs):
        print(f"run {run + 1} of {options.runs}", file=sys.stderr)
        with Gateway(options.broker) as gateway:
            with_gateway.append(hold(gateway, options.connections, options.concurrency))
        with Bare() as server:
            without.append(hold(server, options.connections, options.concurrency))
    added = median(ours - theirs for ours, theirs in zip(with_gateway, without, strict=True))
    text = "\n\n".join(
        [
            "# Memory of an idle connection",
            f"{circumstances(options.broker)}. Medians of {options.runs} alternating runs; {options.connections} connections, "
            f"{options.concurrency} of them connecting at a time; proportional set size, "
            "without what the system keeps for sockets.",
            f"    {command_line()}",
            table(
                ("Owsla, all included", "bare pyOpenSSL server", "Owsla adds", "budget"),
                [(f"{median(with_gateway):.1f} KB", f"{median(without):.1f} KB", f"**{added:.2f} KB**", f"{BUDGET:g} KB")],
            ),
        ]
    )
    publish(text, options.output)
    if added > BUDGET:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
