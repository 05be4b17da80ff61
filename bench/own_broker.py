"""A RabbitMQ of its own for a measurement: the one that the tests start."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.task import react
from twisted.internet.threads import deferToThread

from tests.integration._support.rabbitmq import RabbitMQ

from .harness import broker_version

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
