"""Tests of the router of messages that name a device, against fakes of the devices, the courier and the exchange."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.broker.own_queue import NodeNotice
from owsla.cluster.device_notices import pack_claims
from owsla.cluster.device_router import DeviceRouter
from owsla.cluster.left_behind import LeftBehind
from owsla.cluster.locations import ExchangeState
from owsla.device.claims import Claim
from owsla.letter import BAD, DeliverySource, Hop, Letter
from owsla.routing import Handover

ME, OTHER, THIRD = b"00000001", b"00000002", b"00000003"


def connection_id(node: bytes, number: int = 0) -> bytes:
    return b"%b-0000-8000-8000-%012x" % (node, number)


def claim(device_id: str, node: bytes, since: int = 1) -> Claim:
    return Claim(device_id, connection_id(node).decode(), since, 0, "default")


class Source:
    """Consumer."""

    open = True
    prefetch = 100

    def __init__(self, *, own: bool = False) -> None:
        self.own = own
        self.settled: list[int] = []

    def done(self, tag: int) -> None:
        self.settled.append(tag)

    def written(self, header: bytes, body: bytes) -> None: ...


class DeviceConnection:
    """Connection of a device that takes all messages."""

    def __init__(self, identity: bytes, *, broken: bool = False) -> None:
        self.connection_id = identity
        self.broken = broken
        self.letters: list[Letter] = []
        self.failures: list[Failure] = []

    def body_fault(self, body: bytes) -> str | None:
        return "too-long" if len(body) > 10 else None

    def send(self, *arguments: object) -> None:
        raise AssertionError("a message to a device is a letter")

    def post(self, letter: Letter) -> None:
        if self.broken:
            raise ValueError("broken")
        self.letters.append(letter)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


class World:
    """A router, and the fakes around it: courier, exchange, devices and history."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[tuple[Any, ...]] = []
        self.connections: dict[str, DeviceConnection] = {}
        self.announced: list[Claim] = []
        self.recalled: set[bytes] = set()
        self.state: ExchangeState = "up"
        self.watchers: list[Callable[[ExchangeState], None]] = []
        self.expired_letters: set[int] = set()
        self.router = DeviceRouter(
            self.clock,
            node=lambda: ME,
            to_device="to_device",
            devices=self,
            handover=Handover(self, self, lambda body: "too-long" if len(body) > 20 else None),
            courier=self,
            broadcast=_Exchange(self),
            device_timeout=1.0,
        )

    # devices
    def find(self, device_id: str) -> DeviceConnection | None:
        return self.connections.get(device_id)

    def claim_of(self, device_id: str) -> Claim | None:
        return claim(device_id, ME) if device_id in self.connections else None

    def heard(self, claims: Iterable[Claim]) -> None:
        self.announced.extend(claims)

    # courier
    def record(self, letter: Letter, reason: str) -> None:
        self.sent.append(("record", letter.tag, reason))

    def forward(self, letter: Letter, node: bytes) -> None:
        raise AssertionError("forwards go by name")

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None:
        raise AssertionError("forwards go by name")

    def report(self, letter: Letter, outcome: str) -> None: ...

    def forward_by_name(self, letter: Letter, node: bytes) -> None:
        self.sent.append(("forward", letter.tag, node))

    def return_to_asker(self, letter: Letter) -> None:
        assert letter.hop is not None
        self.sent.append(("return", letter.tag, letter.hop))

    def fence(self, node: bytes, token: str) -> None:
        self.sent.append(("fence", node, token))

    def fenced(self, node: bytes, token: str) -> None:
        self.sent.append(("fenced", node, token))

    def answer(self, queue: bytes, correlation_id: bytes | None, claims: bytes) -> None:
        self.sent.append(("answer", queue, correlation_id, json.loads(claims)))

    def lost(self, queue: str) -> None:
        self.sent.append(("lost", queue))

    # history
    def expired(self, letter: Letter) -> bool:
        return letter.tag in self.expired_letters

    def repeated(self, letter: Letter) -> bool:
        return False

    def recall(self, identity: bytes) -> bool:
        return identity in self.recalled

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None: ...

    # inputs
    def letter(self, tag: int, device_id: str = "x", *, own: bool = False, body: bytes = b"hello", **more: Any) -> Letter:
        return Letter(Source(own=own), tag, b"", body, None, more.pop("seq", None), to_device_id=device_id, **more)

    def notice(self, text: str, body: bytes = b"", *, trusted: bool = True, **more: Any) -> bool:
        values = {"device_id": None, "reply_to": None, "correlation_id": None, **more}
        return self.router.notice(NodeNotice(text, "user", body=body, **values), trusted=trusted)

    def taken(self) -> list[tuple[Any, ...]]:
        """Return what was sent since the last call."""
        self.clock.advance(0.02)
        sent, self.sent = self.sent, []
        return sent


class _Exchange:
    """The exchange of all nodes."""

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def state(self) -> ExchangeState:
        return self._world.state

    def watch(self, changed: Callable[[ExchangeState], None]) -> None:
        self._world.watchers.append(changed)

    def ask(self, device_ids: Sequence[str]) -> bool:
        self._world.sent.append(("ask", *device_ids))
        return True

    def answer(self, queue: str, correlation_id: bytes | None, claims: bytes) -> bool:
        self._world.sent.append(("answer node", queue, correlation_id, json.loads(claims)))
        return True


class MessageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        self.router = self.world.router

    def test_here(self) -> None:
        """A message for a device of this node goes to its connection, and has the id of that from then on."""
        connection = self.world.connections["x"] = DeviceConnection(connection_id(ME))
        self.router.route(self.world.letter(1))
        ((letter,), sent) = connection.letters, self.world.taken()
        self.assertEqual((letter.connection_id, letter.fault, sent), (connection_id(ME), None, []))

    def test_elsewhere(self) -> None:
        """A message for another device is forwarded when a node has answered."""
        self.router.route(self.world.letter(1))
        self.assertEqual(self.world.taken(), [("ask", "x")])
        self.world.notice("has", pack_claims([claim("x", OTHER)]))
        self.assertEqual(self.world.taken(), [("forward", 1, OTHER)])

    def test_nowhere(self) -> None:
        """A message for a device that nobody has is recorded after the time-out, with the reason."""
        self.router.route(self.world.letter(1))
        self.router.route(self.world.letter(2))
        self.world.expired_letters.add(2)
        self.world.clock.advance(0.0)
        self.world.clock.pump([0.1] * 11)
        self.assertEqual(self.world.taken(), [("ask", "x"), ("ask", "x")])  # the question is not back
        self.assertTrue(self.world.notice("who-has", device_id="x", reply_to=b"to_device." + ME))
        self.world.clock.pump([0.1] * 9)
        self.assertEqual(self.world.taken(), [("record", 1, "unknown-device"), ("record", 2, "expired")])

    def test_configure(self) -> None:
        """Another time-out applies at once."""
        self.router.route(self.world.letter(1))
        self.router.configure(0.1)
        self.world.clock.advance(0.0)
        self.world.clock.advance(0.1)
        self.assertEqual(self.world.taken(), [("ask", "x"), ("record", 1, "unknown-device")])

    def test_faults(self) -> None:
        """A message that no node can deliver is recorded without a question."""
        self.router.route(self.world.letter(1, ""))
        self.router.route(self.world.letter(2, "é" * 128))
        self.router.route(self.world.letter(3, "\udcff"))
        self.router.route(self.world.letter(4, seq=0))
        self.router.route(self.world.letter(5, seq=BAD))
        self.router.route(self.world.letter(6, body=b"x" * 21))
        self.router.route(self.world.letter(7, expires_at=BAD))
        self.world.expired_letters.add(8)
        self.router.route(self.world.letter(8))
        reasons = [
            "bad-device-id", "unknown-device", "unknown-device", "bad-seq", "bad-seq", "too-long", "bad-expires-at", "expired"
        ]  # fmt: skip
        self.assertEqual(self.world.taken(), [("record", tag, reason) for tag, reason in enumerate(reasons, 1)])

    def test_forged_return(self) -> None:
        """An id that no device can have is not asked for either if the message pretends to come back from a node: the other
        nodes would not answer a question with such an id.
        """
        for tag, device_id in enumerate(("\udcff", "x" * 256), 1):
            self.router.route(self.world.letter(tag, device_id, own=True, hop=Hop(OTHER, 0, OTHER)))
        self.world.clock.advance(0.1)
        self.assertEqual(self.world.taken(), [("record", 1, "unknown-device"), ("record", 2, "unknown-device")])

    def test_fault_of_the_connection(self) -> None:
        """What the connection of the device cannot be sent is its business: it records the message."""
        connection = self.world.connections["x"] = DeviceConnection(connection_id(ME))
        self.router.route(self.world.letter(1, body=b"x" * 11))
        self.assertEqual([letter.fault for letter in connection.letters], ["too-long"])

    def test_broken_connection(self) -> None:
        """An internal error closes the connection, not the consumer."""
        connection = self.world.connections["x"] = DeviceConnection(connection_id(ME), broken=True)
        self.router.route(self.world.letter(1))
        self.assertEqual((len(connection.failures), self.world.taken()), (1, [("record", 1, "connection-closed")]))

    def test_handed_over_before(self) -> None:
        """A redelivered message that was handed over here is not forwarded: the record of it becomes a report."""
        self.world.recalled.add(b"identity")
        letter = self.world.letter(1)
        letter.identity = b"identity"
        self.router.route(letter)
        self.assertEqual((self.world.taken(), letter.handed_over), ([("record", 1, "unknown-device")], True))

    def test_arrival(self) -> None:
        """A message that another node has forwarded is handed over, or returned: never asked for."""
        self.router.route(self.world.letter(1, own=True, hop=Hop(OTHER, 0)))
        self.assertEqual(self.world.taken(), [("return", 1, Hop(OTHER, 0))])
        connection = self.world.connections["y"] = DeviceConnection(connection_id(ME))
        self.router.route(self.world.letter(2, "y", own=True, hop=Hop(OTHER, 0)))
        self.assertEqual(([letter.tag for letter in connection.letters], self.world.taken()), ([2], []))

    def test_return(self) -> None:
        """A message that was returned is forwarded to the node that has the device now, when the fence is back."""
        self.router.route(self.world.letter(1))
        self.world.notice("has", pack_claims([claim("x", OTHER)]))
        self.world.taken()
        self.router.route(self.world.letter(2, own=True, hop=Hop(ME, 0, OTHER)))
        self.assertEqual(self.world.taken(), [("fence", OTHER, "0"), ("ask", "x")])
        self.world.notice("has", pack_claims([claim("x", THIRD, 2)]))
        self.assertEqual(self.world.taken(), [])
        self.world.notice("fenced 0")
        self.assertEqual(self.world.taken(), [("forward", 2, THIRD)])

    def test_missing_queue(self) -> None:
        """A forward that finds no queue is asked for again. So is a message whose asker is gone."""
        self.router.returned(self.world.letter(1), OTHER)
        self.assertEqual(self.world.taken(), [("fence", OTHER, "0"), ("ask", "x")])
        self.router.returned(self.world.letter(2, "y", own=True, hop=Hop(OTHER, 0)), OTHER)
        self.assertEqual(self.world.taken(), [("ask", "y")])

    def test_left_behind(self) -> None:
        """What was forwarded to a dead node goes back to its asker; what only that node asked for is asked for again."""
        letters = [
            self.world.letter(1, own=True, hop=Hop(THIRD, 1)),
            self.world.letter(2, "y", own=True, hop=Hop(OTHER, 0, THIRD)),
            self.world.letter(3, "z", own=True),
            self.world.letter(4, "u", own=True, hop=Hop(OTHER, 0)),
            self.world.letter(5, "v", own=True, hop=Hop(ME, 0)),
        ]
        left_behind = LeftBehind(self.world, self.router, node=lambda: ME)
        for letter in letters:
            left_behind.message(letter, OTHER)
        self.assertEqual(
            self.world.taken(),
            [("return", 1, Hop(THIRD, 1, OTHER)), ("fence", OTHER, "0"), ("ask", "y", "z", "u", "v")],
        )
        left_behind.notice(NodeNotice("fence 7", None, None, b"to_device.00000003", None, b""))
        left_behind.notice(NodeNotice("who-has", None, "x", b"to_device.00000003", None, b""))
        self.assertEqual(self.world.taken(), [("fenced", THIRD, "7")])
        left_behind.message(Letter(Source(own=True), 6, b"", b"", connection_id(OTHER), None), OTHER)
        left_behind.message(Letter(Source(own=True), 7, b"", b"", None, None), OTHER)
        left_behind.lost("to_device.00000002")
        self.assertEqual(
            self.world.taken(),
            [("record", 6, "unknown-connection"), ("record", 7, "unknown-connection"), ("lost", "to_device.00000002")],
        )
        for letter in letters:
            left_behind.forget(letter.source)
        self.assertEqual(self.router.locations.waiting, 0)

    def test_forget(self) -> None:
        """Messages of a consumer that has ended do not wait any more."""
        letter = self.world.letter(1)
        self.router.route(letter)
        self.router.forget(letter.source)
        self.assertEqual((self.router.locations.waiting, self.world.taken()), (0, []))

    def test_exchange(self) -> None:
        """While the exchange cannot be used, messages wait."""
        for watcher in self.world.watchers:
            watcher("away")
        self.router.route(self.world.letter(1))
        self.world.clock.advance(5.0)
        self.assertEqual(self.world.taken(), [])
        for watcher in self.world.watchers:
            watcher("up")
        self.assertEqual(self.world.taken(), [("ask", "x")])

    def test_internal_error(self) -> None:
        """An error of our own is logged, and stops nothing for good."""
        self.router.route(self.world.letter(1))
        real = self.router.ask
        self.patch(self.router, "ask", lambda ids: 1 / 0)
        self.assertEqual(self.world.taken(), [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.patch(self.router, "ask", real)
        self.world.clock.advance(1.0)
        self.assertEqual(self.world.taken(), [("ask", "x")])
        self.world.notice("who-has", device_id="x", reply_to=b"to_device." + ME)
        self.world.clock.pump([0.1] * 10)
        self.assertEqual(self.world.taken(), [("record", 1, "unknown-device")])


class NoticeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World()
        for device_id in ("x", "y"):
            self.world.connections[device_id] = DeviceConnection(connection_id(ME))

    def test_question_of_a_node(self) -> None:
        """The question of a node is answered on its queue, for the devices of this node only."""
        members = [claim(device_id, ME)._asdict() for device_id in ("x", "y")]
        queue = b"to_device.00000002"
        self.assertTrue(self.world.notice("who-has", b'["x", "nobody", "y"]', reply_to=queue, correlation_id=b"\1c"))
        self.assertTrue(self.world.notice("who-has", device_id="x", reply_to=queue))
        self.assertEqual(
            self.world.taken(),
            [("answer node", queue.decode(), b"\1c", members), ("answer node", queue.decode(), None, members[:1])],
        )

    def test_question_of_a_back_end(self) -> None:
        """Anybody may ask. The answer goes where answers to back ends go, whatever its queue is called."""
        for queue in (b"answers", b"amq.rabbitmq.reply-to.x", b"to_device.00000002"):
            self.assertTrue(self.world.notice("who-has", device_id="x", reply_to=queue, trusted=False))
            self.assertEqual(self.world.taken(), [("answer", queue, None, [claim("x", ME)._asdict()])])

    def test_silence(self) -> None:
        """Without the device, without a queue for the answer, and to its own questions, a node says nothing."""
        self.assertTrue(self.world.notice("who-has", device_id="nobody", reply_to=b"answers", trusted=False))
        self.assertTrue(self.world.notice("who-has", device_id="x", trusted=False))
        self.assertTrue(self.world.notice("who-has", device_id="x", reply_to=b"to_device.00000001"))
        self.assertTrue(self.world.notice("who-has", b"nonsense", reply_to=b"answers"))
        self.assertEqual(self.world.taken(), [])

    def test_announcements(self) -> None:
        """Announcements are for the devices of this node, too; answers only for those that ask."""
        claims = [claim("x", OTHER), claim("z", OTHER)]
        self.world.router.route(self.world.letter(1, "z"))
        self.world.taken()
        self.assertTrue(self.world.notice("here", pack_claims(claims)))
        self.assertEqual((self.world.announced, self.world.taken()), (claims, [("forward", 1, OTHER)]))
        self.assertTrue(self.world.notice("has", pack_claims(claims)))
        self.assertTrue(self.world.notice("here", b"[]"))
        self.assertTrue(self.world.notice("here", b"nonsense"))
        self.assertEqual(self.world.announced, claims)

    def test_not_trusted(self) -> None:
        """Only nodes make claims and fences."""
        for text in ("has", "here", "fence 1", "fenced 1"):
            self.assertFalse(self.world.notice(text, pack_claims([claim("z", OTHER)]), trusted=False))
        self.assertEqual((self.world.announced, self.world.taken()), ([], []))

    def test_other_kinds(self) -> None:
        """Notices of other kinds are somebody else's."""
        for text in ("probe 1", "lost", ""):
            self.assertFalse(self.world.notice(text))

    def test_fence(self) -> None:
        """A fence goes back to its node."""
        self.assertTrue(self.world.notice("fence 17", reply_to=b"to_device.00000003"))
        self.assertTrue(self.world.notice("fence 18", reply_to=b"elsewhere"))
        self.assertTrue(self.world.notice("fence 19"))
        self.assertTrue(self.world.notice("fenced nonsense"))
        self.assertEqual(self.world.taken(), [("fenced", THIRD, "17")])
