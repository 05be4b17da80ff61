"""Cost of an operator's questions about many connections: the largest slice of a reactor turn, CPU, and memory.

    python -m bench.desk --connections 200000 --output desk.md

There are no sockets: connections have transports that discard everything, and every tenth sends lines between two passes of
`top`. A question is answered in slices, between which a gateway serves its devices. Here nothing else happens between two
slices.

Budget: no slice takes longer than 10 ms. The exit status is 1 if one does.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed

from owsla.desk import Args, DeviceDetails, DeviceList, Lookup, Rows, Slices, TopDevices
from owsla.device.connections import Connections
from owsla.device.factory import DeviceFactory
from owsla.device.protocol import DeviceProtocol
from owsla.device.services import DeviceRuntime, DeviceServices
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.device.stock_transport import address_text
from owsla.routing import ConnectionIds, Registry
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.supervision import DynamicSupervisor

from .harness import arguments, circumstances, command_line, publish, table
from .micro import NoCourier, NoTransport

BUDGET = 10.0
"""Budget in ms for the largest slice: 5 ms, and what one step takes on a machine that is busy."""

Answer = Callable[[Args], Deferred[Any]]


class TurningClock:
    """Clock whose delayed calls are made by `run`, which measures each of them. Waiting takes no time."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, Callable[..., Any], tuple[Any, ...]]] = deque()
        self._skipped = 0.0
        self.slices: list[float] = []
        """CPU seconds of each call so far: other processes of the machine are not counted."""

    def seconds(self) -> float:
        return time.perf_counter() + self._skipped

    def callLater(self, delay: float, call: Callable[..., Any], *args: Any) -> Any:
        self._calls.append((delay, call, args))

    def run(self, until: Callable[[], bool]) -> None:
        """Make the delayed calls until a condition is true."""
        while not until():
            delay, call, args = self._calls.popleft()
            self._skipped += delay
            start = time.thread_time()
            call(*args)
            self.slices.append(time.thread_time() - start)


class FromAddress(NoTransport):
    """Transport of a device with an address."""

    tls_version = "TLSv1.3"
    untaken = 0

    def __init__(self, number: int) -> None:
        self._address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1024 + number % 60000

    @property
    def peer(self) -> str:  # type: ignore[override]
        return address_text(*self._address)


class NoSink:
    """Sink that only counts."""

    accepting = True
    share = 1 << 30
    line_size = 16384

    def open(self, connection_id: bytes, device_id: str | None) -> None: ...

    def publish(self, source: Any, line: bytes, received: float) -> None:
        source.seq += 1

    def serves(self, source: Any) -> bool:
        return True


class Passes(Registry[Any]):
    """Registry that counts how often somebody has begun to visit all connections."""

    begun = 0

    def walk(self, size: int) -> Iterator[list[Any]]:
        self.begun += 1
        return super().walk(size)


class Node:
    """Many connections, and the parts that answer questions about them."""

    def __init__(self, connections: int) -> None:
        self.clock = TurningClock()
        clock = cast("Any", self.clock)
        self.registry = registry = Passes()
        endpoints: DynamicSupervisor[Any] = DynamicSupervisor(clock)
        endpoints.startService()
        services = DeviceServices(
            DeviceRuntime(clock, EndOfTurn(clock), lambda event: None, time.time),
            SharedSettings(),
            Connections(ConnectionIds(), registry, endpoints),
            cast("Any", NoSink()),
            NoCourier(),
        )
        names = (f"meter-{number:08}" for number in range(connections))
        factory = DeviceFactory(services, DeviceSettings(proxy_identity=True), DeviceProtocol)
        self.devices: list[DeviceProtocol] = []
        for number, name in enumerate(names):
            transport = FromAddress(number)
            transport.proxy_identity = name  # type: ignore[attr-defined]
            protocol = factory.buildProtocol(None)
            protocol.makeConnection(transport)
            self.devices.append(protocol)
        slices, rows = Slices(clock), Rows(clock, time.time, services.slow)
        lookup = Lookup(registry, services.devices, slices)
        self.list = DeviceList(registry, rows, slices)
        self.details = DeviceDetails(clock, time.time, lookup, rows, services, lambda text, limit: succeed([]))
        self.top = TopDevices(clock, registry, services.slow, services.reordering, rows, slices)

    def talk(self) -> None:
        """Receive lines of every tenth device, of some more than of others."""
        for number, device in enumerate(self.devices[::10]):
            for _ in range(1 + number % 7):
                device.dataReceived(b"a line of fifty bytes, which a device might send..\n")

    def ask(self, *questions: tuple[Answer, dict[str, Any]]) -> list[Any]:
        """Ask questions at once, and return their answers."""
        answers: list[Any] = []
        for answer, args in questions:
            answer(args).addCallback(answers.append).addErrback(lambda failure: failure.raiseException())
        self.clock.run(lambda: len(answers) == len(questions))
        return answers


def measure(node: Node, questions: list[tuple[Answer, dict[str, Any]]]) -> tuple[list[str], float]:
    """Return the row of a table about questions that are asked at once, and the largest slice in ms."""
    node.clock.slices.clear()
    gc.collect()
    start = time.process_time()
    answers = node.ask(*questions)
    cpu = time.process_time() - start
    largest, slices = 1000 * max(node.clock.slices, default=0.0), len(node.clock.slices)
    tracemalloc.start()
    node.ask(*questions)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    size = max(len(json.dumps(answer)) for answer in answers) / 1024
    return [f"{slices}", f"{largest:.1f}", f"{1000 * cpu:.0f}", f"{peak:.1f}", f"{size:.0f}"], largest


def main() -> None:
    parser = arguments("Measure an operator's questions about many connections.")
    parser.add_argument("--connections", type=int, default=200_000, help="connections (default: %(default)s)")
    options = parser.parse_args()
    node = Node(options.connections)
    gc.collect()
    gc.freeze()  # as a gateway does after handshakes
    last = f"10.{(options.connections - 1) >> 16}.{(options.connections - 1) >> 8 & 255}.{(options.connections - 1) & 255}"
    cases: dict[str, list[tuple[Answer, dict[str, Any]]]] = {
        "devices: the first 100": [(node.list.answer, {})],
        "devices: 1,000 by name, descending": [(node.list.answer, {"sort": "-device_id", "limit": 1000})],
        "devices: 100 by bytes": [(node.list.answer, {"sort": "-bytes_in"})],
        "devices: 100 by address": [(node.list.answer, {"sort": "peer"})],
        "devices: a query that nothing matches": [(node.list.answer, {"query": "nothing"})],
        "devices: the slow ones": [(node.list.answer, {"state": "slow"})],
        "devices: ten questions at once": [(node.list.answer, {"query": f"{number}7"}) for number in range(10)],
        "device: by device id": [(node.details.answer, {"id": "meter-00000100"})],
        "device: by address": [(node.details.answer, {"id": last})],
    }
    rows, largest = [], 0.0
    for name, questions in cases.items():
        print(name, file=sys.stderr)
        row, slice_ = measure(node, questions)
        rows.append((name, *row))
        largest = max(largest, slice_)
    print("top", file=sys.stderr)
    node.ask((node.top.answer, {}))
    node.talk()
    row, slice_ = measure_passes(node)
    rows.append(("top: a pass", *row))
    largest = max(largest, slice_)
    text = "\n\n".join(
        [
            "# Questions about many connections",
            f"{circumstances()}. {options.connections} connections in one process. Largest slice of a reactor turn, CPU of the "
            "question, its memory at most, and the size of the answer as JSON.",
            f"    {command_line()}",
            table(("question", "slices", "largest (ms)", "CPU (ms)", "memory (MB)", "answer (KB)"), rows),
        ]
    )
    publish(text, options.output)
    if largest > BUDGET:
        sys.exit(1)


def measure_passes(node: Node) -> tuple[list[str], float]:
    """Return the row of a table about one pass of `top`, and the largest slice in ms."""
    clock, passes = node.clock, node.registry
    node.ask((node.top.answer, {}))
    node.talk()

    def next_pass() -> None:
        begun = passes.begun
        clock.run(lambda: passes.begun == begun + 1)

    next_pass()
    clock.slices.clear()
    gc.collect()
    start = time.process_time()
    next_pass()
    cpu = time.process_time() - start
    largest, slices = 1000 * max(clock.slices), len(clock.slices)
    tracemalloc.start()
    node.ask((node.top.answer, {}))
    next_pass()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    [answer] = node.ask((node.top.answer, {"limit": 100}))
    size = len(json.dumps(answer)) / 1024
    return [f"{slices}", f"{largest:.1f}", f"{1000 * cpu:.0f}", f"{peak:.1f}", f"{size:.0f}"], largest


if __name__ == "__main__":
    main()
