"""Connection ids, and where a message belongs."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from owsla.letter import BAD, DeliverySource, Letter, unknown_reason
from owsla.routing import ConnectionIds, Handover, Registry, Router, canonical, node_of

HERE = b"0123abcd"
ID = b"0123abcd-1111-8222-9333-444444444444"
GONE = b"0123abcd-1111-8222-9333-555555555555"
ELSEWHERE = b"89abcdef-1111-8222-9333-444444444444"


class IdTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.binary(min_size=4, max_size=4), st.binary(min_size=12, max_size=12))
    def test_a_uuid_of_version_8(self, node: bytes, rest: bytes) -> None:
        """An id is a UUID of version 8 and the RFC's variant in its canonical form, and begins with its node."""
        ids = ConnectionIds(lambda size: node if size == 4 else rest[:size])
        made = ids.new()
        parsed = uuid.UUID(made.decode())
        self.assertEqual(str(parsed).encode(), made)
        self.assertEqual(parsed.version, 8)
        self.assertEqual(parsed.variant, uuid.RFC_4122)
        self.assertEqual(parsed.bytes[:4], node)
        self.assertEqual(ids.node, node.hex().encode())
        self.assertEqual(node_of(made), ids.node)
        self.assertEqual(canonical(made), made)

    def test_ninety_random_bits(self) -> None:
        """What the node, the version and the variant leave is random: 90 bits."""
        ids = ConnectionIds()
        seen_ones = seen_zeros = 0
        for _ in range(300):
            number = uuid.UUID(ids.new().decode()).int
            seen_ones |= number
            seen_zeros |= ~number
        self.assertEqual((seen_ones & seen_zeros & ((1 << 96) - 1)).bit_count(), 90)

    def test_different(self) -> None:
        """Ids differ, and so do nodes."""
        ids = ConnectionIds()
        self.assertEqual(len({ids.new() for _ in range(1000)}), 1000)
        self.assertNotEqual(ids.node, ConnectionIds().node)
        self.assertNotEqual(ids.node, ids.other())

    def test_another_name(self) -> None:
        """After the node took another name its new connections have that."""
        ids = ConnectionIds()
        ids.node = ids.other()
        self.assertEqual(node_of(ids.new()), ids.node)


class CanonicalTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.uuids())
    def test_either_case(self, some: uuid.UUID) -> None:
        """A UUID in either case has one canonical form."""
        self.assertEqual(canonical(str(some).encode()), str(some).encode())
        self.assertEqual(canonical(str(some).upper().encode()), str(some).encode())

    def test_what_is_none(self) -> None:
        """Whatever is not the text of a UUID, to the last character, is not taken for one."""
        for odd in (
            b"", b"x", ID + b"\n", b" " + ID, ID[:-1], ID + b"0", ID.replace(b"-", b""), b"{" + ID + b"}", ID[:-1] + b"g",
            b"urn:uuid:" + ID, ID[:-1] + b"\xff", bytes(36),
        ):  # fmt: skip
            self.assertIsNone(canonical(odd), odd)

    @settings(deadline=None)
    @given(st.binary(max_size=40))
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes may come in the header."""
        self.assertIn(canonical(data), (None, data.lower()))


class RegistryTests(SynchronousTestCase):
    def test_registry(self) -> None:
        """Connections are found by their id until they are removed; removing one twice does no harm."""
        registry: Registry[str] = Registry()
        registry.add(b"a", "A")
        registry.add(b"b", "B")
        self.assertEqual((registry.find(b"a"), registry.find(b"c"), len(registry)), ("A", None, 2))
        for connection in registry:  # it may shrink meanwhile
            registry.remove(connection.lower().encode())
        registry.remove(b"a")
        self.assertEqual((registry.find(b"a"), len(registry)), (None, 0))

    def test_walk(self) -> None:
        """A walk has the connections of its beginning, in order, without those that have ended meanwhile."""
        registry: Registry[str] = Registry()
        for letter in "abcdefg":
            registry.add(letter.encode(), letter.upper())
        walk = registry.walk(3)
        self.assertEqual(next(walk), ["A", "B", "C"])
        registry.remove(b"a")
        registry.remove(b"e")
        registry.add(b"h", "H")
        self.assertEqual(list(walk), [["D", "F"], ["G"]])
        for letter in "bcdfgh":
            registry.remove(letter.encode())
        self.assertEqual(list(registry.walk(3)), [])


class Source:
    open = True
    prefetch = 100
    own = False

    def done(self, tag: int) -> None:
        raise AssertionError("the router acknowledges nothing")

    def written(self, header: bytes, body: bytes) -> None:
        raise AssertionError("the router writes nothing")


def body_fault(body: bytes) -> str | None:
    """Return the fault of a body that is not a line of at most 10 bytes."""
    if len(body) > 10:
        return "too-long"
    return "delimiter-in-body" if re.search(rb"[\r\n]", body) else None


class Held:
    """A connection that notes what it is given."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.posted: list[Letter] = []
        self.fault: Exception | None = None
        self.failures: list[BaseException | None] = []

    def body_fault(self, body: bytes) -> str | None:
        return "bad-length" if body == b"odd" else None

    def send(self, *what: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append(what)

    def post(self, letter: Letter) -> None:
        if self.fault is not None:
            raise self.fault
        self.posted.append(letter)

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure.value)


class Courier:
    def __init__(self) -> None:
        self.recorded: list[tuple[bytes | None, str]] = []
        self.letters: list[Letter] = []
        self.forwarded: list[tuple[bytes | None, bytes]] = []
        self.plain: list[tuple[Any, ...]] = []

    def record(self, letter: Letter, reason: str) -> None:
        self.letters.append(letter)
        self.recorded.append((letter.connection_id, reason))

    def forward(self, letter: Letter, node: bytes) -> None:
        self.forwarded.append((letter.connection_id, node))

    def forward_plain(
        self, source: DeliverySource, tag: int, connection_id: bytes, seq: int | None, header: bytes, body: bytes
    ) -> None:
        self.plain.append((source, tag, connection_id, seq, header, body))

    def report(self, letter: Letter, outcome: str) -> None:
        raise AssertionError("nothing was delivered")


class Route:
    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.forgotten: list[DeliverySource] = []

    def route(self, letter: Letter) -> None:
        self.letters.append(letter)

    def forget(self, source: DeliverySource) -> None:
        self.forgotten.append(source)


class Deliveries:
    """What was written before, as the test says; it is 100 s since the epoch."""

    def __init__(self) -> None:
        self.numbers: set[tuple[bytes | None, int | None]] = set()
        self.identities: list[bytes] = []
        self.repeats: list[Letter] = []
        self.forgotten: list[Any] = []

    def expired(self, letter: Letter) -> bool:
        return letter.expires_at is not None and letter.expires_at <= 100.0

    def repeated(self, letter: Letter) -> bool:
        known = (letter.connection_id, letter.seq) in self.numbers
        if known:
            self.repeats.append(letter)
        return known

    def recall(self, identity: bytes) -> bool:
        return identity in self.identities

    def forget(self, source: DeliverySource, handed_over: Iterable[bytes]) -> None:
        self.forgotten.append((source, list(handed_over)))


class RouterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.held = Held()
        self.courier = Courier()
        self.deliveries = Deliveries()
        self.by_name, self.groups = Route(), Route()
        registry: Registry[Held] = Registry()
        registry.add(ID, self.held)
        self.router = Router(
            lambda: HERE,
            registry.find,
            self.courier,
            Handover(self.courier, self.deliveries, body_fault),
            by_name=self.by_name,
            groups=self.groups,
        )
        self.source = Source()

    def route(self, connection_id: bytes | None, seq: int | None = None, body: bytes = b"body") -> None:
        self.router.route(self.source, 7, connection_id, seq, b"header", body)

    def letter(self, connection_id: bytes | None, seq: int | None = None, body: bytes = b"body", **more: Any) -> Letter:
        letter = Letter(self.source, 7, b"header", body, connection_id, seq, **more)
        self.router.route_letter(letter)
        return letter

    def test_to_a_connection_here(self) -> None:
        """A plain message for a connection here goes straight to it."""
        self.route(ID, 3)
        self.route(ID, None, b"")
        self.route(ID, 0, b"x" * 10)
        self.assertEqual(
            self.held.sent,
            [
                (self.source, 7, b"header", b"body", ID, 3),
                (self.source, 7, b"header", b"", ID, None),
                (self.source, 7, b"header", b"x" * 10, ID, 0),
            ],
        )
        self.assertEqual((self.courier.recorded, self.courier.forwarded), ([], []))

    def test_an_error_of_ours(self) -> None:
        """An error in dealing with one connection costs that one only, and its message is on record."""
        self.held.fault = ZeroDivisionError()
        self.route(ID, 3)
        self.letter(ID, 4)
        self.assertEqual(self.held.failures, [self.held.fault] * 2)
        self.assertTrue(all(letter.settled for letter in self.courier.letters))
        self.assertEqual(self.courier.recorded, [(ID, "connection-closed")] * 2)

    def test_upper_case(self) -> None:
        """An id in upper case is the same connection."""
        self.route(ID.upper(), 3)
        self.assertEqual([(one.connection_id, one.seq, one.fault) for one in self.held.posted], [(ID, 3, None)])

    def test_elsewhere(self) -> None:
        """A message for another node's connection is forwarded to that node: a plain one as it is, another one under its
        canonical id.
        """
        self.route(ELSEWHERE)
        self.route(ELSEWHERE, 5)
        self.assertEqual(
            self.courier.plain,
            [(self.source, 7, ELSEWHERE, None, b"header", b"body"), (self.source, 7, ELSEWHERE, 5, b"header", b"body")],
        )
        self.route(ELSEWHERE.upper(), 5)
        self.letter(ELSEWHERE, 6, reply_to=b"q")
        self.assertEqual(self.courier.forwarded, [(ELSEWHERE, b"89abcdef")] * 2)
        self.assertEqual((len(self.courier.plain), self.courier.recorded), (2, []))

    def test_from_the_own_queue(self) -> None:
        """What came on this node's own queue for another one's connection is recorded: it was sent on once, or never should."""
        self.source.own = True
        self.route(ELSEWHERE)
        self.assertEqual((self.courier.recorded, self.courier.forwarded), ([(ELSEWHERE, "unknown-connection")], []))
        self.assertEqual(self.courier.plain, [])

    def test_undeliverable(self) -> None:
        """What no connection can get is recorded, with the contract's reason."""
        for connection_id, seq, body, reason in (
            (None, None, b"", "no-connection-id"),
            (b"", None, b"", "bad-connection-id"),
            (b"device-7", None, b"", "bad-connection-id"),
            (GONE, None, b"", "unknown-connection"),
            (GONE, BAD, b"", "bad-seq"),
            (ELSEWHERE, BAD, b"", "bad-seq"),
            (ID, BAD, b"", "bad-seq"),
            (ELSEWHERE, None, b"x" * 11, "too-long"),
            (ELSEWHERE, None, b"a\nb", "delimiter-in-body"),
            (GONE, None, b"a\rb", "delimiter-in-body"),
        ):
            self.courier.recorded.clear()
            self.route(connection_id, seq, body)
            self.assertEqual(self.courier.recorded, [(connection_id, reason)])
        self.assertEqual((self.courier.forwarded, self.held.sent, self.held.posted), ([], [], []))
        self.assertEqual(self.courier.plain, [])

    def test_faults_use_up_their_number(self) -> None:
        """A message for a connection here that must not be sent is brought to it with its fault: it has a number to use up."""
        self.letter(ID, 4, b"odd", reply_to=b"q")
        self.assertEqual([(one.seq, one.fault) for one in self.held.posted], [(4, "bad-length")])
        self.assertEqual((self.held.sent, self.courier.recorded), ([], []))

    def test_a_body_is_for_its_connection(self) -> None:
        """What a connection here can be sent is its own matter, whatever others can be sent. A plain message is not checked:
        the connection does that.
        """
        self.letter(ID, 4, b"x\n" * 11, reply_to=b"q")
        self.assertEqual([(one.seq, one.fault) for one in self.held.posted], [(4, None)])
        self.route(ID, 5, b"odd")
        self.assertEqual([what[5] for what in self.held.sent], [5])

    def test_a_close_needs_no_body(self) -> None:
        """A message that only closes the connection has no body to find fault with."""
        self.patch(self.held, "body_fault", lambda body: "bad-length")
        self.letter(ID, 4, b"", close=True)
        self.letter(ID, 5, b"x", close=True)
        self.assertEqual([(one.seq, one.fault) for one in self.held.posted], [(4, None), (5, "bad-length")])

    def test_faults_use_up_their_number_elsewhere(self) -> None:
        """A numbered message that must not be sent goes to the connection's node all the same, which puts it on record."""
        self.route(ELSEWHERE, 4, b"x" * 11)
        self.letter(ELSEWHERE, 5, expires_at=99.0)
        self.letter(ELSEWHERE, 6, expires_at=BAD)
        self.assertEqual((self.courier.recorded, self.courier.forwarded), ([], [(ELSEWHERE, b"89abcdef")] * 3))
        self.source.own = True
        self.letter(ELSEWHERE, 5, expires_at=99.0)
        self.assertEqual(self.courier.recorded, [(ELSEWHERE, "expired")])

    def test_expired(self) -> None:
        """What has expired is not sent: at its moment, and after it, and not before."""
        self.assertEqual(self.letter(ID, 1, expires_at=100.0).fault, "expired")
        self.assertIsNone(self.letter(ID, 2, expires_at=100.1).fault)
        self.letter(ELSEWHERE, expires_at=99.0)
        self.letter(ELSEWHERE, expires_at=101.0)
        self.assertEqual(self.courier.recorded, [(ELSEWHERE, "expired")])
        self.assertEqual(self.courier.forwarded, [(ELSEWHERE, b"89abcdef")])

    def test_no_moment(self) -> None:
        """A moment that is none is a mistake, and not to be taken for all the time in the world."""
        self.assertEqual(self.letter(ID, 1, expires_at=BAD).fault, "bad-expires-at")
        self.letter(ELSEWHERE, expires_at=BAD)
        self.assertEqual(self.courier.recorded, [(ELSEWHERE, "bad-expires-at")])

    def test_a_bad_number_goes_to_nobody(self) -> None:
        """A number that is none cannot be used up: the message is recorded, even for a connection here."""
        self.letter(ID, BAD, reply_to=b"q")
        self.assertEqual((self.held.posted, self.courier.recorded), ([], [(ID, "bad-seq")]))

    def test_refuse(self) -> None:
        """What a consumer cannot read is recorded with its reason."""
        self.router.refuse(Letter(self.source, 1, b"", b"", None, None), "bad-connection-id")
        self.assertEqual(self.courier.recorded, [(None, "bad-connection-id")])

    def test_forget(self) -> None:
        """Whoever holds messages is told when their consumer is gone."""
        self.router.forget(self.source, [b"a"])
        self.assertEqual(self.deliveries.forgotten, [(self.source, [b"a"])])
        self.assertEqual((self.by_name.forgotten, self.groups.forgotten), ([self.source], [self.source]))

    def test_letters_without_a_connection_id(self) -> None:
        """A message to a device, or to many, has a route of its own; a connection id comes first."""
        named = Letter(self.source, 7, b"", b"body", None, None, to_device_id="door-7")
        many = Letter(self.source, 8, b"", b"body", None, None, selector="all")
        both = Letter(self.source, 9, b"", b"body", ID, None, to_device_id="door-7", selector="all")
        for letter in (named, many, both):
            self.router.route_letter(letter)
        self.assertEqual((self.by_name.letters, self.groups.letters), ([named], [many]))
        self.assertEqual((self.held.posted, self.courier.recorded), ([both], []))
        self.assertEqual((unknown_reason(named), unknown_reason(many)), ("unknown-device", "node-lost"))

    def test_repeats_for_a_closed_connection(self) -> None:
        """What was written on a connection that is closed now is settled as a repeat and not recorded, whatever its fault."""
        self.deliveries.numbers = {(GONE, 3)}
        self.route(GONE, 3)
        self.route(GONE.upper(), 3, b"x" * 11)
        self.letter(GONE, 3, expires_at=99.0)
        self.assertEqual((len(self.deliveries.repeats), self.courier.recorded), (3, []))
        self.route(GONE, 4)
        self.route(GONE)
        self.assertEqual(self.courier.recorded, [(GONE, "unknown-connection")] * 2)

    def test_what_was_handed_over_before(self) -> None:
        """A message without a number that comes again is known by its identity, whatever becomes of it now."""
        self.deliveries.identities = [b"known"]
        for identity in (b"known", b"other", None):
            letter = Letter(self.source, 7, b"header", b"body", ID, None)
            letter.identity = identity
            self.router.route_letter(letter)
        self.assertEqual([letter.handed_over for letter in self.held.posted], [True, False, False])
