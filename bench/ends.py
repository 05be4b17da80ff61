"""Memory and cost of the events and ends that a gateway keeps for an operator, with devices that come and go.

    python -m bench.ends --devices 200000 --output ends.md

There are no sockets: the events of devices go to the handlers of a node as its event manager passes them on. Every device
connects and disconnects. Every tenth is refused instead, each at an address of its own; every twentieth has no id. Then the
ends are searched, in slices of a reactor turn.

Budget: the memory that is allocated is no more than the bounds allow. The exit status is 1 if it is, or if a slice of a search
takes longer than 10 ms.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

from twisted.internet.defer import Deferred

from owsla.desk import Ends, EndSearch, RecentEvents, Slices
from owsla.desk._ends import ANONYMOUS, IDENTIFIED, REFUSED
from owsla.desk._events import SIZE
from owsla.events import DeviceConnected, DeviceDisconnected, Event, EventManager, HandshakeFailed

from .desk import BUDGET, TurningClock
from .harness import arguments, circumstances, command_line, publish, table

BOUND: Final = SIZE + IDENTIFIED + ANONYMOUS + REFUSED
REASONS: Final = ("closed by the device", "lost", "no line for 60 s", "too slow: more than 1048576 bytes wait for it")
EXPIRED: Final = "TLS: the device's certificate is refused: it has expired"


def events_of(number: int) -> Iterator[Event]:
    """Yield the events of a device that comes and goes."""
    peer = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:{1024 + number % 60000}"
    device_id = f"meter-{number:07d}"
    if number % 10 == 0:
        yield HandshakeFailed(peer, EXPIRED, f"CN={device_id},O=Example", f"{number:040X}", "default", device_id)
        return
    connection_id = f"0123abcd-{number & 0xFFFF:04x}-8000-8000-{number:012x}"
    identity = None if number % 20 == 1 else device_id
    yield DeviceConnected(connection_id, identity, peer, "TLSv1.3", "default", 1_790_000_000_000 + number)
    yield DeviceDisconnected(connection_id, identity, peer, REASONS[number % len(REASONS)], number, 3, 61.25 + number, 0)


class Node:
    """Handlers of a node that keep events."""

    def __init__(self) -> None:
        self.ends = Ends()
        self.recent = RecentEvents("01234567")
        self.events = EventManager(lambda: "0123abcd")
        self.clock = TurningClock()
        self._search = EndSearch(self.ends, Slices(cast(Any, self.clock)))

    def install(self) -> None:
        """Install the handlers."""
        self.events.add(self.recent)
        self.events.add(self.ends)

    def take(self, events: Sequence[Event]) -> float:
        """Take events. Return the CPU seconds that they took."""
        emit = self.events.emit
        start = time.thread_time()
        for event in events:
            emit(event)
        return time.thread_time() - start

    def ask(self, question: Callable[[EndSearch], Deferred[Any]]) -> tuple[int, float, float, int]:
        """Search. Return the slices, the largest and all CPU seconds, and the size of the answer as JSON."""
        self.clock.slices.clear()
        answers: list[Any] = []
        question(self._search).addCallback(answers.append)
        self.clock.run(lambda: bool(answers))
        slices = self.clock.slices
        return len(slices), max(slices), sum(slices), len(json.dumps(answers[0]))


def kept(devices: int, rows: list[tuple[Any, ...]]) -> tuple[Node, int]:
    """Have devices come and go. Add the memory after each tenth of them. Return the node, and the memory at most."""
    gc.collect()
    tracemalloc.start()
    node = Node()
    node.install()
    before = tracemalloc.get_traced_memory()[0]
    largest = 0
    for tenth in range(10):
        for number in range(tenth * devices // 10, (tenth + 1) * devices // 10):
            for event in events_of(number):
                node.events.emit(event)
        memory = tracemalloc.get_traced_memory()[0] - before
        largest = max(largest, memory)
        if tenth in (0, 1, 4, 9):
            count = len(node.ends)
            so_far, estimate = (tenth + 1) * devices // 10, node.ends.size
            rows.append((f"{so_far:,}", f"{count:,}", f"{memory / 1e6:.2f}", f"{estimate / 1e6:.2f}"))
    tracemalloc.stop()
    return node, largest


def costs(devices: int) -> list[tuple[str, str, str]]:
    """Return the CPU µs of each kind of event: to make it, and to keep it."""
    rows = []
    for kind in (DeviceConnected, DeviceDisconnected, HandshakeFailed):
        chosen = [number for number in range(devices) if any(isinstance(event, kind) for event in events_of(number))][:20_000]
        events = [event for number in chosen for event in events_of(number) if isinstance(event, kind)]
        taken = []
        for installed in (False, True):
            node = Node()
            if installed:
                node.install()
                node.take([event for number in range(50_000) for event in events_of(number)])  # the memory is full
            taken.append(min(node.take(events) for _ in range(5)) / len(events) * 1e6)
        rows.append((kind.name, f"{taken[0]:.2f}", f"{taken[1]:.2f}"))
    return rows


def main() -> int:
    parser = arguments("Measure the memory and the cost of kept events.")
    parser.add_argument("--devices", type=int, default=200_000, help="devices that come and go")
    options = parser.parse_args()
    memory: list[tuple[Any, ...]] = []
    node, largest = kept(options.devices, memory)
    questions: dict[str, Callable[[EndSearch], Deferred[Any]]] = {
        "ends: the last 100": lambda search: search.answer({}),
        "ends: a query that nothing matches": lambda search: search.answer({"query": "nobody"}),
        "ends: the same in other letters": lambda search: search.answer({"query": "zähler"}),
        "ends: a query that many match": lambda search: search.answer({"query": "meter", "limit": 1000}),
        "device: an id that is not known": lambda search: search.of("nobody", 20),
        "device: an address of the last one": lambda search: search.of(f"10.{(options.devices - 1) >> 16 & 255}.1.1", 20),
    }
    answered = [(name, *node.ask(question)) for name, question in questions.items()]
    slowest = max(row[2] for row in answered)
    lines = [
        "# Events and ends that are kept for an operator",
        "",
        f"{circumstances()}. {options.devices:,} devices come and go. Allocated memory (`tracemalloc`) and estimate, which is "
        f"bounded: {BOUND / 1e6:.2f} MB. CPU µs to pass an event on, without and with the handlers that keep it. Searches.",
        "",
        f"    {command_line()}",
        "",
        table(("devices so far", "ends kept", "allocated (MB)", "ends by estimate (MB)"), memory),
        "",
        table(("event", "without (µs)", "with (µs)"), costs(options.devices)),
        "",
        table(
            ("search", "slices", "largest (ms)", "CPU (ms)", "answer (KB)"),
            [(name, slices, f"{big * 1e3:.1f}", f"{cpu * 1e3:.0f}", size // 1000) for name, slices, big, cpu, size in answered],
        ),
    ]
    publish("\n".join(lines), options.output)
    if largest > BOUND or slowest * 1e3 > BUDGET:
        print(f"over the budget: {largest / 1e6:.2f} MB, {slowest * 1e3:.1f} ms", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
