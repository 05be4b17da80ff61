"""Tests of valid AMQP frames without sense, for every reader: no received frame is a defect of Owsla."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from owsla.amqp import wire
from owsla.amqp.methods import BY_NAME, Method, encode_method
from owsla.broker import queues as topology
from owsla.broker.binding import Binding
from owsla.broker.broadcast import BroadcastRole
from owsla.broker.connection import EXPECTED, Role
from owsla.broker.consumers import Consumers, ConsumerSettings, OwnQueueParts
from owsla.broker.courier import CourierRole
from owsla.broker.door_lines import DoorLines, line_channel
from owsla.broker.door_publisher import PublisherOptions
from owsla.broker.lines import LinePublisher
from owsla.broker.own_queue import OwnQueueSettings
from owsla.broker.packing import LinePacker
from owsla.broker.presence import PresenceRole
from owsla.broker.window import Window
from owsla.cli import _send, _tail, _who_has
from owsla.cli._echo import Echo
from owsla.cli._running import Session
from owsla.cli._send import Send, SendOptions
from owsla.cli._tail import Peek, Tail, as_json, as_text
from owsla.cli._who_has import WhoHas, WhoHasOptions, as_table
from owsla.cluster.notices import GONE, HERE, Notice
from owsla.cluster.register import ClusterSettings, register_queue
from owsla.cluster.registrar import Registrar
from tests.unit.events.doubles import connected

from ..amqp.values import TABLES
from ..cluster.test_registrar import ME, NODES, QUEUE, A, Lists, Receiver
from .fakes import BrokerTestCase, Result, Server, Source, deliver, message
from .test_consumers import Place, Router
from .test_lines import Device

ID = f"{A}-0000-8000-8000-000000000001"

_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "octet": st.sampled_from([0, 1, 255]),
    "short": st.sampled_from([0, 1, 312, 404, 406, 541, 65535]),
    "long": st.sampled_from([0, 1, 5, (1 << 32) - 1]),
    "longlong": st.sampled_from([0, 1, 2, 3, 7, 1 << 20, 1 << 63, (1 << 64) - 1]),
    "timestamp": st.just(0),
    "shortstr": st.sampled_from(
        [b"", b"x", b"to_device", b"from_device", NODES.encode(), QUEUE.encode(), b"owsla-0", b"owsla-roster", b"\xff" * 255]
    ),
    "longstr": st.sampled_from([b"", b"PLAIN", b"\xff" * 10]),
    "table": st.just({}),
}

_HEADERS = st.one_of(
    st.none(),
    TABLES,
    st.fixed_dictionaries(
        {},
        optional={
            name: st.sampled_from(
                [ID, "x", "", "has", "fanned-out", b"\xff", 0, 1, -1, (1 << 63) - 1, wire.Timestamp(1 << 60), [], {"a": None}]
            )
            for name in ("connection_id", "from_device_seq", "to_device_seq", "node", "owsla_notice", "owsla_report")
        },
    ),
)
_TEXTS = st.sampled_from(["1", "\u00b2", "x" * 255, ""])
_PROPERTIES = st.fixed_dictionaries(
    {}, optional={"reply_to": _TEXTS, "correlation_id": _TEXTS, "timestamp": st.sampled_from([0, (1 << 64) - 1])}
)
_CLAIM = b'[{"device_id":"a","connection_id":"c","since":1,"age":1,"door":"d"}, {"device_id": []}, 1]'
_BODIES = st.sampled_from([b"", b"body", b"[]", _CLAIM, Notice(A, HERE).pack(), Notice(A, GONE).pack(), b"x" * 9])


@st.composite
def method_frames(draw: st.DrawFn, methods: list[Method]) -> bytes:
    """Return the frames of one method, with its content if it has any."""
    method = draw(st.sampled_from(methods))
    channel = draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 9]))
    fields = {name: draw(_VALUES[kind]) for name, kind in method.fields}
    frames = wire.frame(wire.FRAME_METHOD, channel, encode_method(method.name, **fields))
    if not method.has_content:
        return frames
    body = draw(_BODIES)
    properties = wire.encode_properties({"headers": draw(_HEADERS), **draw(_PROPERTIES)})
    if draw(st.integers(0, 9)) == 0:
        properties = draw(st.binary(min_size=2, max_size=40))
    return frames + wire.content_frames(channel, wire.header_payload(len(body), properties), body, 12)


#: Those that the handlers of channels get, and any.
_FREQUENT = [BY_NAME[f"basic.{name}"] for name in ("deliver", "ack", "nack", "return", "get-ok", "get-empty", "cancel")]
FRAMES = st.lists(method_frames(_FREQUENT) | method_frames(list(BY_NAME.values())), min_size=1, max_size=6)


class _Output:
    """Standard output that accepts everything at once, and discards it."""

    def __init__(self, reactor: Any, broken: Callable[[str], None]) -> None: ...

    def write(self, data: bytes, then: Callable[[], None]) -> None:
        then()


class OddFramesTests(BrokerTestCase):
    """Any frame is handled, or ends the connection with a reason of the broker, and the connection is opened again."""

    def setUp(self) -> None:
        for command in (_send, _tail, _who_has):
            self.patch(command, "Output", _Output)

    def play(self, make: Callable[[Server], tuple[Role, Callable[[], object]]], pieces: list[bytes], early: bool) -> None:
        """Send the frames to a role that is up, or during its set-up."""
        server = Server(heartbeat=60_000)
        role, act = make(server)
        server.client.watcher = role
        if early:
            server.silent |= {"queue.declare", "basic.consume", "confirm.select"}
        server.ready()
        up = Result(role.up(server.client))
        server.settle()
        act()
        server.clock.advance(0)
        for piece in pieces:
            if not server.transport.ended:
                server.raw(piece)
        for _ in range(3):
            server.clock.advance(1)
            server.settle()
        server.drop()
        role.down()
        for error in server.lost:
            self.assertIsInstance(error, EXPECTED)
        self.assertTrue(up.done)
        if up.failure is not None:
            self.assertIsInstance(up.failure.value, EXPECTED)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_report_with_an_odd_id(self) -> None:
        """The correlation id of a report may be anything: one that is not a number of Owsla is ignored."""
        server = Server(heartbeat=60_000)
        role, _ = make_send(server)
        server.ready()
        Result(role.up(server.client))
        server.settle()
        for text in ("\u00b2", "9" * 255, "\u0661", "", "-1"):
            header = message(b"", {"owsla_report": "delivered"}, correlation_id=text)
            server.raw(deliver(1, 1, header, b""))
        self.assertEqual(server.lost, [])


def make_producer(server: Server) -> tuple[Role, Callable[[], object]]:
    role = DoorLines(server.clock)
    producer = LinePublisher(
        server.clock,
        lambda event: None,
        queue=topology.Queue("from_device"),
        packer=LinePacker(
            channel=line_channel(0),
            exchange="",
            routing_key="from_device",
            seq_header="from_device_seq",
            delivery_mode=2,
            reply_to=b"",
            frame_max=131072,
        ),
        window=Window(8, 1 << 20),
        options=PublisherOptions(acknowledge=True, observe=lambda seconds: None, failed=role.channel_failed),
    )
    role.add("default", producer)
    device = Device(producer, ID)

    def act() -> None:
        for _ in range(3):
            producer.publish(device, b"line")

    return role, act


def make_broadcast(server: Server) -> tuple[Role, Callable[[], object]]:
    role = BroadcastRole(
        server.clock,
        lambda event: None,
        exchange="to_device.all",
        own_queue=lambda: QUEUE,
        question_lifetime=lambda: 1.0,
        claim_lifetime=60.0,
        record=lambda letter, reason: None,
    )
    bound = Server(server.clock, heartbeat=60_000).ready()
    Result(role.binding.begin(bound.client, QUEUE))
    bound.settle()

    def act() -> None:
        role.spread(Source().letter(1), "group")
        role.ask(["device"])
        role.claim(b"[]")

    return role, act


def make_consumers(server: Server) -> tuple[Role, Callable[[], object]]:
    place = Place()
    consumers = Consumers(
        server.clock,
        server.turn,
        lambda event: None,
        Router(),
        own=OwnQueueParts(place, Binding(server.clock, "to_device.all", changed=lambda: None, warn=lambda text: None)),
        settings=ConsumerSettings(
            shared=topology.Queue("to_device"),
            count=2,
            prefetch=10,
            own_queue=OwnQueueSettings(
                users={"me"},
                grace=1.5,
                ghost=0.5,
                patience=1.0,
            ),
        ),
        flowing=lambda flows: None,
    )
    return consumers, lambda: [arrived() for arrived in place.arrived]


def make_courier(server: Server) -> tuple[Role, Callable[[], object]]:
    courier = CourierRole(
        server.clock,
        lambda event: None,
        undeliverable=topology.undeliverable_queue("to_device", 1000),
        to_device="to_device",
        node=lambda: ME.encode(),
        node_grace=1.0,
        held_limit=3,
        device=lambda connection_id: None,
    )
    source = Source()

    def act() -> None:
        courier.record(source.letter(1), "late")
        courier.forward(source.letter(2), A.encode())
        courier.report(source.letter(3, reply_to=b"x"), "delivered")

    return courier, act


def make_registrar(server: Server) -> tuple[Role, Callable[[], object]]:
    registrar = Registrar(
        server.clock,
        lambda event: None,
        ClusterSettings("to_device", register_queue("to_device", {}), node_grace=0.5, users={"me"}),
        node=lambda: ME.encode(),
        left_behind=Receiver(),
        presence=None,
        joined=lambda: None,
        lists=Lists(),
    )

    def act() -> None:
        registrar.here()
        registrar.gone(A, True)

    return registrar, act


def make_presence(server: Server) -> tuple[Role, Callable[[], object]]:
    role = PresenceRole(server.clock, lambda event: None, node=lambda: ME, live=list, now=lambda: 1000.0)

    def act() -> None:
        role.handle(connected(ID), ME, 1000.0)
        role.node_lost(A)

    return role, act


class _Quiet(Session):
    def log(self, text: str) -> None: ...

    def finish(self, status: int, text: str = "") -> None: ...


def _session(server: Server) -> Session:
    return _Quiet(server.clock, "test", patient=True)


def _nothing() -> None: ...


def make_echo(server: Server) -> tuple[Role, Callable[[], object]]:
    echo: Any = Echo(
        server.clock,
        server.turn,
        _session(server),
        from_device="from_device",
        to_device="to_device",
        seq_header="from_device_seq",
    )
    return echo, _nothing


def make_tail(server: Server) -> tuple[Role, Callable[[], object]]:
    def both(properties: Any, body: bytes, redelivered: bool, *, seq_header: str) -> bytes:
        as_json(properties, body, redelivered, seq_header=seq_header)
        return as_text(properties, body, redelivered, seq_header=seq_header)

    what: Any = {"queue": "from_device", "form": both, "seq_header": "from_device_seq"}
    tail: Any = Tail(server.clock, server.turn, _session(server), count=None, **what)
    return tail, _nothing


def make_peek(server: Server) -> tuple[Role, Callable[[], object]]:
    what: Any = {"queue": "from_device", "form": as_json, "seq_header": "from_device_seq"}
    peek: Any = Peek(server.clock, server.turn, _session(server), count=3, **what)
    return peek, _nothing


def make_send(server: Server) -> tuple[Role, Callable[[], object]]:
    options = SendOptions(queue="to_device", address={"connection_id": ID}, text=b"line", report=True)
    send: Any = Send(server.clock, server.turn, _session(server), options=options)
    return send, _nothing


def make_send_to_many(server: Server) -> tuple[Role, Callable[[], object]]:
    options = SendOptions(queue="to_device", address={"owsla_to": "all"}, text=b"line", expires=2.0, report=True)
    send: Any = Send(server.clock, server.turn, _session(server), options=options)
    return send, _nothing


def make_who_has(server: Server) -> tuple[Role, Callable[[], object]]:
    options = WhoHasOptions("to_device.all", ("a", "b"), wait=1.0, timeout=2.0, show=as_table)
    who_has: Any = WhoHas(server.clock, server.turn, _session(server), options=options)
    return who_has, _nothing


def _case(make: Callable[[Server], tuple[Role, Callable[[], object]]]) -> Callable[[OddFramesTests], None]:
    @settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
    @given(FRAMES, st.booleans())
    def test(self: OddFramesTests, pieces: list[bytes], early: bool) -> None:
        self.play(make, pieces, early)

    return test


for _name, _make in (
    ("producer", make_producer),
    ("consumers", make_consumers),
    ("courier", make_courier),
    ("registrar", make_registrar),
    ("presence", make_presence),
    ("broadcast", make_broadcast),
    ("echo", make_echo),
    ("tail", make_tail),
    ("peek", make_peek),
    ("send", make_send),
    ("send_to_many", make_send_to_many),
    ("who_has", make_who_has),
):
    setattr(OddFramesTests, f"test_{_name}", _case(_make))
