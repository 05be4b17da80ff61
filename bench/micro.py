"""Cost of the hot path by itself: CPU microseconds of one publish and of one delivery, and of their parts.

    python -m bench.micro --output micro.md

There are no sockets and no broker: the objects of the gateway get transports that discard everything, and the bytes that
RabbitMQ would send, in realistic batches. `bench.gateway` includes the operating system and TLS; this is the cost of our own
code on top.

A *publish* is `LinePublisher.publish` with packing and window, its share of the one write a turn, and its share of a confirm
that covers many. A *delivery* is bytes from RabbitMQ in `BrokerClient.dataReceived`, through consumer and router, to the bytes
handed to the device's transport and the acknowledgement handed to RabbitMQ's. A *forward* is such bytes for a device of another
node, to the bytes that publish the message to that node, its share of a confirm, and the acknowledgement.

Budget: 4 µs per publish, 8 µs per delivery. The exit status is 1 if a median exceeds it.
"""

from __future__ import annotations

import gc
import statistics
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from zope.interface import implementer

from owsla.amqp import wire
from owsla.amqp.methods import BY_NAME, encode_method
from owsla.broker import headers as delivery
from owsla.broker import queues as topology
from owsla.broker.batch_pacing import BatchPacing
from owsla.broker.batch_packing import BatchPacker
from owsla.broker.batch_window import BatchWindow
from owsla.broker.batches import BatchPublisher
from owsla.broker.client import FRAME_MAX, BaseHandler, BrokerClient, Credentials
from owsla.broker.consumer import Consumer
from owsla.broker.courier import PUBLISH_CHANNEL, CourierRole
from owsla.broker.door_lines import line_channel
from owsla.broker.door_publisher import DoorPublisher, PublisherOptions
from owsla.broker.lines import LinePublisher
from owsla.broker.packing import LinePacker, MessageArguments
from owsla.broker.window import Window
from owsla.config.framings import read_framing
from owsla.device.connections import Connection, Connections
from owsla.device.factory import DeviceFactory
from owsla.device.fanout import Fanout, Group
from owsla.device.framing import make_framing
from owsla.device.interfaces import IDeviceTransport
from owsla.device.protocol import DeviceProtocol
from owsla.device.selectors import Selector
from owsla.device.services import DeviceRuntime, DeviceServices
from owsla.device.settings import DeviceSettings, SharedSettings
from owsla.device.tracing import TraceRecord, Tracing
from owsla.letter import DeliverySource, Letter
from owsla.routing import ConnectionIds, Handover, Registry, Router
from owsla.runtime.end_of_turn import EndOfTurn
from owsla.supervision import DynamicSupervisor

from .harness import arguments, circumstances, command_line, publish, table

DEVICES = 200
LINE_SIZE = 50
FRAMINGS = ("length:2", "netstring", "octet-counting", f"fixed:{LINE_SIZE}", "between:02:03")
"""Framings beside lines."""

TOGETHER = (5, 20, 100)
"""Lines that a device sends at once."""
BATCH = 200
"""Maximum number of lines in a message, in the cases with batches."""

LINES = line_channel(0)
LINE = b"x" * LINE_SIZE
BUDGET = {"publish": 4.0, "delivery": 8.0}

Step = Callable[[], object]


@implementer(IDeviceTransport)
class NoTransport:
    """Transport that discards bytes and is never congested."""

    peer = tls_version = ""

    def write(self, data: bytes) -> None: ...

    def getHandle(self) -> None: ...

    def registerProducer(self, producer: object, streaming: bool) -> None: ...

    def fileno(self) -> int:
        return -1

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...


class ObligingChannel:
    """Channel on which every method succeeds at once."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def succeed(**_: Any) -> None: ...

        return succeed


class OpenConnection(BrokerClient):
    """Connection on which channels are open without a broker."""

    async def open_channel(self, number: int, handler: Any) -> Any:
        self.handlers[number] = handler
        return ObligingChannel()

    async def end_channel(self, number: int) -> None: ...


class NoRoute:
    def route(self, letter: Letter) -> None: ...

    def forget(self, source: DeliverySource) -> None: ...


class NoCourier:
    """Courier that fails: no message may be forwarded or recorded."""

    def record(self, letter: Letter, reason: str) -> None:
        raise AssertionError(reason)

    def forward(self, letter: Letter, node: bytes) -> None:
        raise AssertionError(node)

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None:
        raise AssertionError(connection_id)

    def report(self, letter: Letter, outcome: str) -> None:
        raise AssertionError(outcome)


class NoSource:
    """Consumer that acknowledges nothing."""

    open = own = True
    prefetch = 500

    def done(self, tag: int) -> None: ...

    def written(self, header: bytes, body: bytes) -> None: ...


class Sink:
    """End of a shortened path, to measure the path up to there."""

    open = True

    def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None: ...

    def route(self, source: Any, tag: int, connection_id: Any, seq: Any, header: bytes, body: bytes) -> None: ...

    def route_letter(self, letter: Letter) -> None: ...

    def refuse(self, letter: Letter, reason: str) -> None: ...

    def forget(self, source: Any) -> None: ...

    def send(self, source: Any, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None) -> None: ...

    def post(self, letter: Letter) -> None: ...

    def done(self, tag: int) -> None: ...


def manual_clock() -> Any:
    """Return a clock that is advanced by hand. Delayed calls cost about as much on it as on a reactor."""
    return Clock()


class Node:
    """Hot path of a gateway: all objects between the transports to devices and broker."""

    def __init__(self, device_ack: bool = False, framing: str = "lines", trace_lines: float = 0.0, batch: int = 1) -> None:
        """`batch` is the maximum number of lines in a message. All lines of a turn of the reactor travel together."""
        self.most = batch
        self.clock = manual_clock()
        self.turn = EndOfTurn(self.clock)
        self.framing = make_framing(read_framing(framing), b"\n", 16384)
        self.ids = ConnectionIds()
        self.registry: Registry[Any] = Registry()
        self.packer = LinePacker(seq_header="from_device_seq", **self.message())
        self.window = Window(10_000, 16 << 20)
        self.producer = self.publisher(device_ack)
        self.producer.trace(trace_lines)
        self.publishing = self.connection()
        ensureDeferred(self.producer.up(self.publishing))
        self.consuming = self.connection()
        endpoints: DynamicSupervisor[Connection] = DynamicSupervisor(self.clock)
        endpoints.startService()
        services = DeviceServices(
            DeviceRuntime(self.clock, self.turn, lambda event: None, time.time),
            SharedSettings(),
            Connections(self.ids, self.registry, endpoints),
            self.producer,
            NoCourier(),
        )
        acknowledge: Callable[[int], bytes] | None = (lambda seq: b"ACK %d\r\n" % seq) if device_ack else None
        settings = DeviceSettings(device_ack=acknowledge, framing=self.framing)
        self.services = services
        self.factory = DeviceFactory(services, settings, DeviceProtocol)
        self.devices = [self.device() for _ in range(DEVICES)]

    def message(self) -> MessageArguments:
        return {
            "channel": LINES,
            "exchange": "",
            "routing_key": "from_device",
            "delivery_mode": 2,
            "reply_to": b"to_device." + self.ids.node,
            "frame_max": FRAME_MAX,
        }

    def publisher(self, device_ack: bool) -> DoorPublisher:
        queue = topology.Queue("from_device")
        options = PublisherOptions(acknowledge=device_ack)
        if self.most == 1:
            return LinePublisher(self.clock, print, queue=queue, packer=self.packer, window=self.window, options=options)
        return BatchPublisher(
            self.clock,
            print,
            queue=queue,
            packer=BatchPacker(most=self.most, **self.message()),
            window=BatchWindow(10_000, 16 << 20),
            pacing=BatchPacing(self.clock, self.turn, 0.0),
            options=options,
        )

    def connection(self) -> OpenConnection:
        login = Credentials("", "", "/")
        client = OpenConnection(self.clock, self.turn, login=login, heartbeat=30, name="bench", watcher=self.producer)
        client.transport = NoTransport()
        return client

    def device(self, factory: DeviceFactory | None = None) -> DeviceProtocol:
        protocol: DeviceProtocol = (factory or self.factory).buildProtocol(None)
        protocol.makeConnection(NoTransport())
        return protocol

    def courier(self) -> CourierRole:
        """Return a courier that is connected."""
        courier = CourierRole(
            self.clock,
            print,
            undeliverable=topology.undeliverable_queue("to_device", 1000),
            to_device="to_device",
            node=lambda: self.ids.node,
            device=lambda connection_id: None,
            node_grace=10.0,
            held_limit=1000,
        )
        self.relaying = self.connection()
        ensureDeferred(courier.up(self.relaying))
        return courier

    def router(self, find: Callable[[bytes], Any], courier: Any = None) -> Router:
        courier = courier or NoCourier()
        return Router(
            lambda: self.ids.node,
            find,
            courier,
            Handover(courier, self.factory.deliveries, self.framing.fault),
            by_name=NoRoute(),
            groups=NoRoute(),
        )

    def consumer(self, router: Any) -> Consumer:
        return Consumer(
            self.consuming, 1, topology.Queue("to_device"), router, self.turn, self.clock, lambda consumer, reason: None
        )


def confirm(tag: int, channel: int = LINES) -> bytes:
    """Return the frame with which RabbitMQ confirms all publishes up to this tag."""
    return wire.frame(wire.FRAME_METHOD, channel, BY_NAME["basic.ack"].prefix + struct.pack(">QB", tag, 1))


def deliveries(node: Node, first: int, count: int, seq: int | None, ids: Sequence[bytes] | None = None) -> bytes:
    """Return the frames with which RabbitMQ delivers `count` messages to as many devices: those of the node, or with `ids` the
    connections of these ids in turn.
    """
    ids = ids or [device.connection_id for device in node.devices]
    frames = []
    for number in range(count):
        tag = first + number
        headers: dict[str, Any] = {"connection_id": ids[tag % len(ids)].decode()}
        if seq is not None:
            headers["to_device_seq"] = seq
        method = encode_method(
            "basic.deliver", consumer_tag="owsla", delivery_tag=tag, redelivered=False, exchange="", routing_key="to_device"
        )
        properties = wire.encode_properties({"headers": headers, "delivery_mode": 2})
        frames.append(wire.frame(wire.FRAME_METHOD, 1, method))
        frames.append(wire.content_frames(1, wire.header_payload(len(LINE), properties), LINE, FRAME_MAX))
    return b"".join(frames)


class Timings:
    """Timings of steps by the CPU clock of the process."""

    def __init__(self, runs: int, messages: int) -> None:
        self.runs = runs
        self.messages = messages
        self.rows: dict[str, list[float]] = {}

    def measure(self, name: str, make: Callable[[], tuple[Step, int]]) -> None:
        """Time a step: `make` returns the step and the number of messages that it processes."""
        step, messages = make()
        repeat = max(1, self.messages // messages)
        for _ in range(max(1, repeat // 10)):
            step()
        gc.collect()
        start = time.process_time()
        for _ in range(repeat):
            step()
        self.rows.setdefault(name, []).append((time.process_time() - start) / repeat / messages * 1e6)


def publishes(node: Node, batch: int, every: int, through_endpoint: bool = False, together: int = 1) -> tuple[Step, int]:
    """Return reactor turns of `batch` reads from different devices, with a delayed confirm for each `every` lines.

    With `together` each read has as many lines. Without `through_endpoint` the lines are given to the publisher.
    """
    devices, producer, client, clock = node.devices, node.producer, node.publishing, node.clock
    state = {"published": 0, "confirmed": 0, "at": 0}
    data = node.framing.encode([LINE] * together)
    messages = -(-batch * together // node.most)
    if node.most > 1:
        every = messages

    def turn() -> None:
        at = state["at"]
        if through_endpoint:
            for device in devices[at : at + batch]:
                device.dataReceived(data)
        else:
            for device in devices[at : at + batch]:
                producer.publish(device, LINE)
        state["at"] = (at + batch) % DEVICES
        clock.advance(0)
        state["published"] += messages
        while state["published"] - state["confirmed"] >= 4 * every:
            state["confirmed"] += every
            client.dataReceived(confirm(state["confirmed"]))
            clock.advance(0)

    return turn, batch * together


class TraceReader:
    """Trace with bodies, whose records are dropped from time to time."""

    bodies = True

    def __init__(self) -> None:
        self._records: list[TraceRecord] = []
        self.record = self._records.append

    def left(self, connection: DeviceProtocol, failed: bool) -> None: ...

    def drop(self) -> None:
        self._records.clear()


def traced_lines(batch: int, every: int, devices: slice) -> tuple[Step, int]:
    """Return `publishes` through the connections, some of which are traced. The records are dropped every 20 turns."""
    node, tracing, reader = Node(), Tracing(time.time), TraceReader()
    for device in node.devices[devices]:
        tracing.attach(device, reader)
    turn, messages = publishes(node, batch, every, through_endpoint=True)

    def turns() -> None:
        for _ in range(20):
            turn()
        reader.drop()

    return turns, 20 * messages


def prepared(reads: list[bytes], client: BrokerClient, clock: Clock) -> Step:
    """Return a step that processes one prepared read after the other: building them must not be measured."""
    waiting = iter(reads)

    def turn() -> None:
        client.dataReceived(next(waiting))
        clock.advance(0)

    return turn


def received(
    make: Callable[[Node], Any], batch: int, messages: int, numbered: bool, framing: str = "lines"
) -> Callable[[], tuple[Step, int]]:
    """Return reads of `batch` deliveries, processed by the handler that `make` returns for a new node."""

    def begin() -> tuple[Step, int]:
        node = Node(framing=framing)
        node.consuming.handlers[1] = make(node)
        repeat = max(1, messages // batch)
        reads = []
        for number in range(repeat + max(1, repeat // 10) + 1):
            first = 1 + number * batch
            # Device i gets a message in every (DEVICES / batch)th read.
            reads.append(deliveries(node, first, batch, (first - 1) // DEVICES if numbered else None))
        return prepared(reads, node.consuming, node.clock), batch

    return begin


def forwarded(batch: int, every: int, messages: int, share: int) -> Callable[[], tuple[Step, int]]:
    """Return reads of `batch` deliveries of which one in `share` is for another node, with a delayed confirm for each `every`
    forwards. The others are for devices of this node.
    """

    def begin() -> tuple[Step, int]:
        node, elsewhere = Node(), ConnectionIds()
        ids = [device.connection_id if number % share else elsewhere.new() for number, device in enumerate(node.devices)]
        consumer = node.consumer(node.router(node.registry.find, node.courier()))
        ensureDeferred(consumer.start(8, 500, lambda: True))
        repeat = max(1, messages // batch)
        deliver = prepared(
            [deliveries(node, 1 + number * batch, batch, None, ids) for number in range(repeat + max(1, repeat // 10) + 1)],
            node.consuming,
            node.clock,
        )
        state = {"forwarded": 0, "confirmed": 0}

        def turn() -> None:
            deliver()
            state["forwarded"] += batch // share
            while state["forwarded"] - state["confirmed"] >= 4 * every:
                state["confirmed"] += every
                node.relaying.dataReceived(confirm(state["confirmed"], PUBLISH_CHANNEL))
                node.clock.advance(0)

        return turn, batch

    return begin


def measure_publish(timings: Timings, batch: int, every: int) -> None:
    """Time publishes and their parts, in one run."""
    measure = timings.measure

    def pack() -> tuple[Step, int]:
        node = Node()
        template, packer = node.devices[0].template, node.packer

        def step() -> None:
            for seq in range(1000):
                packer.pack(template, seq, LINE, 1_700_000_000)

        return step, 1000

    def add_and_confirm() -> tuple[Step, int]:
        window, source = Window(10_000, 16 << 20), object()
        packed = bytes(300)
        tag = [0]

        def step() -> None:
            for seq in range(every):
                window.add(source, seq, packed)
            tag[0] += every
            window.confirm(tag[0], True)

        return step, every

    def clock() -> tuple[Step, int]:
        now = time.time

        def step() -> None:
            for _ in range(1000):
                int(now())

        return step, 1000

    def write() -> tuple[Step, int]:
        node = Node()
        client, packed = node.publishing, bytes(300)

        def step() -> None:
            for _ in range(batch):
                client.write(packed)
            node.clock.advance(0)

        return step, batch

    measure("publish", lambda: publishes(Node(), batch, every))
    measure("publish, --device-ack", lambda: publishes(Node(device_ack=True), batch, every))
    measure("publish, --trace-lines 0.01", lambda: publishes(Node(trace_lines=0.01), batch, every))
    measure("publish, --trace-lines 1", lambda: publishes(Node(trace_lines=1.0), batch, every))
    measure("publish, one line per turn", lambda: publishes(Node(), 1, every))
    measure_lines(timings, batch, every)
    measure("· pack", pack)
    measure("· the clock", clock)
    measure("· window: add and confirm", add_and_confirm)
    measure("· write: append, and its share of the write per turn", write)


def measure_lines(timings: Timings, batch: int, every: int) -> None:
    """Time lines from the read of a connection to their confirm: alone, together, in batches, framed, and traced."""
    measure = timings.measure

    def line(framing: str) -> tuple[Step, int]:
        return publishes(Node(framing=framing), batch, every, through_endpoint=True)

    measure("line: DeviceProtocol.dataReceived to confirm", lambda: publishes(Node(), batch, every, through_endpoint=True))
    for together in TOGETHER:
        measure(f"the same, {together} lines a read", partial(publishes, Node(), batch, every, True, together))
    measure("the same, in batches", lambda: publishes(Node(batch=BATCH), batch, every, through_endpoint=True))
    for together in TOGETHER:
        measure(
            f"the same, in batches, {together} lines a read",
            partial(publishes, Node(batch=BATCH), batch, every, True, together),
        )
    for framing in FRAMINGS:
        measure(f"the same, {framing}", partial(line, framing))
    measure("the same, while one of the devices is traced", lambda: traced_lines(batch, every, devices=slice(1)))
    measure("the same, traced with bodies", lambda: traced_lines(batch, every, devices=slice(None)))


def measure_delivery(timings: Timings, batch: int) -> None:
    """Time deliveries and their parts, in one run."""
    measure, messages = timings.measure, timings.messages
    sink: Any = Sink()

    def whole(node: Node) -> Any:
        return node.consumer(node.router(node.registry.find))

    class ReadOnly(BaseHandler):
        def deliver(self, tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
            delivery.read(header)

    class Done(Sink):
        """Device connection that only acknowledges."""

        def send(self, source: Any, tag: int, header: bytes, body: bytes, connection_id: bytes, seq: int | None) -> None:
            source.done(tag)

    done: Any = Done()

    measure("delivery", received(whole, batch, messages, False))
    measure("delivery, numbered", received(whole, batch, messages, True))
    measure("delivery, one per turn", received(whole, 1, messages, True))
    for framing in FRAMINGS:
        measure(f"delivery, {framing}", received(whole, batch, messages, False, framing))
    measure("d1", received(lambda node: sink, batch, messages, True))
    measure("d2", received(lambda node: ReadOnly(), batch, messages, True))
    measure("d3", received(lambda node: node.consumer(sink), batch, messages, True))
    measure("d4", received(lambda node: node.consumer(node.router(lambda _: sink)), batch, messages, True))
    measure("d5", received(lambda node: node.consumer(node.router(lambda _: done)), batch, messages, True))


def measure_forward(timings: Timings, batch: int, every: int) -> None:
    """Time forwards to another node."""
    timings.measure("forward", forwarded(batch, every, timings.messages, 1))
    timings.measure("forward or delivery, in turn", forwarded(batch, every, timings.messages, 2))


def fanned_out(connections: int, chosen: int) -> Callable[[], tuple[Step, int]]:
    """Return messages for many devices of a node with `connections`, of which a door selects `chosen`."""

    def begin() -> tuple[Step, int]:
        node = Node()
        few = DeviceFactory(node.services, DeviceSettings(framing=node.framing), DeviceProtocol, door="few")
        for number in range(connections - DEVICES):
            node.device(few if number < chosen else None)
        ended: list[Group] = []
        fanout = Fanout(node.clock, 1e9, node.factory.deliveries.expired, lambda group, late: ended.append(group))
        header = wire.header_payload(len(LINE), wire.encode_properties({"headers": {"owsla_to": "all"}}))
        selector = Selector() if chosen == connections else Selector(door="few")

        def step() -> None:
            letter = Letter(NoSource(), 1, header, LINE, None, None, deadline=node.clock.seconds() + 60.0)
            group = Group(letter, selector, node.registry)
            fanout.begin(group)
            while len(fanout):
                node.clock.advance(0)
            assert ended.pop().devices == chosen

        return step, connections

    return begin


def measure_fanout(timings: Timings) -> None:
    """Time messages for many devices, per connection of the node."""
    timings.measure("message for all of 10,000 devices, per device", fanned_out(10_000, 10_000))
    timings.measure("message for 10 of 40,000 devices, per connection", fanned_out(40_000, 10))


def report(timings: Timings, options: Any) -> tuple[str, bool]:
    """Format the results as Markdown, and return whether the budget is kept."""
    middle = {name: statistics.median(values) for name, values in timings.rows.items()}
    best = {name: min(values) for name, values in timings.rows.items()}
    kept = True
    rows = []
    for name in middle:
        if (name[0] == "d" and name[1:].isdigit()) or name.startswith("·"):
            continue
        budget = BUDGET.get(name) or (BUDGET["delivery"] if name == "delivery, numbered" else None)
        verdict = ""
        if budget is not None:
            verdict = f"{budget:g}" + ("" if middle[name] <= budget else " **exceeded**")
            kept = kept and middle[name] <= budget
        rows.append((name, f"**{middle[name]:.2f}**", f"{best[name]:.2f}", verdict))
    steps = [
        ("read frames (`BrokerClient._read`)", middle["d1"]),
        ("read headers (`delivery.read`)", middle["d2"] - middle["d1"]),
        ("`Consumer.deliver`", middle["d3"] - middle["d2"]),
        ("`Router.route`: find", middle["d4"] - middle["d3"]),
        ("acknowledge: `Consumer.done`, and its share of the write per turn", middle["d5"] - middle["d4"]),
        ("`DeviceProtocol.send`: check the body, write it to the device", middle["delivery, numbered"] - middle["d5"]),
    ]
    whole = middle["publish"]
    share = [(name[2:], value) for name, value in middle.items() if name.startswith("·")]
    rest = whole - sum(value for _, value in share)
    text = "\n\n".join(
        [
            "# The hot path by itself",
            f"{circumstances()}. CPU µs per message: median and best of {options.runs} alternating runs of {options.messages} "
            f"messages; lines of {len(LINE)} bytes, {DEVICES} devices, {options.batch} messages per reactor turn, a confirm "
            f"for {options.every} publishes.",
            f"    {command_line()}",
            table(("", "median µs", "best µs", "budget"), rows),
            "## Parts of a publish",
            table(
                ("part", "µs", "share"),
                [(name, f"{value:.2f}", f"{value / whole:.0%}") for name, value in [*share, ("calls and the rest", rest)]],
            ),
            "## Parts of a numbered delivery",
            table(
                ("part", "µs", "share"),
                [(name, f"{value:.2f}", f"{value / middle['delivery, numbered']:.0%}") for name, value in steps],
            ),
        ]
    )
    return text, kept


def main() -> None:
    parser = arguments("Measure the hot path by itself.")
    parser.add_argument("--runs", type=int, default=7, help="number of alternating runs (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=60_000, help="messages in each run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=20, help="messages per reactor turn (default: %(default)s)")
    parser.add_argument("--every", type=int, default=50, help="publishes that a confirm covers (default: %(default)s)")
    options = parser.parse_args()
    timings = Timings(options.runs, options.messages)
    for _ in range(options.runs):
        measure_publish(timings, options.batch, options.every)
        measure_delivery(timings, options.batch)
        measure_forward(timings, options.batch, options.every)
        measure_fanout(timings)
    text, kept = report(timings, options)
    publish(text, options.output)
    if not kept:
        sys.exit(1)


if __name__ == "__main__":
    main()
