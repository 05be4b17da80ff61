"""Embedded broker in a process of its own, which shares no reactor with the tests or with an Owsla.

`python -m tests.integration._support.embedded [PORT]` runs it, and prints `port N` once it listens.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .process import ChildProcess

_ROOT = Path(__file__).resolve().parents[3]


class EmbeddedBrokerProcess:
    """Process with the embedded broker alone, reached at `url` by guest/guest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = "127.0.0.1"
        self.port = 0
        self._process: ChildProcess | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}/%2f"

    async def start(self) -> None:
        """Start the broker and wait until it listens."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = ChildProcess(
            [sys.executable, "-m", __name__, str(self.port)], output=self.folder / "embedded.log", cwd=_ROOT
        )
        match = await self._process.wait_for_line(r"^port (\d+)$")
        self.port = int(match[1])

    def output(self) -> str:
        """Return the log of the broker."""
        assert self._process is not None
        return self._process.output()

    async def kill(self) -> None:
        """Kill it at once, with all messages: the broker is in memory."""
        assert self._process is not None
        self._process.kill()

    async def close(self) -> None:
        """Stop the broker."""
        if self._process is not None:
            self._process.kill()


def main(port: int) -> None:
    """Serve until killed."""
    from twisted.python import log

    from owsla.embedded import EmbeddedBroker

    from .waiting import current_reactor

    reactor = current_reactor()
    log.startLogging(sys.stdout, setStdout=False)
    broker = EmbeddedBroker(reactor, None, port=port)

    def start() -> None:
        broker.startService()
        print(f"port {broker.port}", flush=True)

    reactor.callWhenRunning(start)
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
